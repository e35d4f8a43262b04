/* SPDX-License-Identifier: Apache-2.0
 *
 * A C-STORE sender that is never the bottleneck: one data set in memory, sent again and again over
 * several associations (one thread each), every response timed.
 *
 *   sender HOST PORT CALLED CALLING ASSOCIATIONS COUNT FILE [discard]
 *
 * FILE is a DICOM file (PS3.10) in Explicit or Implicit VR Little Endian; its SOP Instance UID
 * (0008,0018) and that of the command are given new digits for each instance, so that no receiver
 * can take two for the same.  Prints one line: instances, seconds, bytes, and the microseconds of
 * every response, in order of size.  With `discard` HOST is ignored and the other end is a thread
 * of its own that throws everything away: what the sender can do at most.
 */
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static const char *host, *port, *called, *calling;
static char sop_class[65], sop_instance[65], syntax[65];
static uint8_t *data_set;
static size_t data_set_bytes, uid_at;
static int per_association;
static pthread_barrier_t ready;

static void die(const char *what) { perror(what); exit(2); }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* -- what is sent ------------------------------------------------------------------------------ */

static size_t item(uint8_t *out, uint8_t kind, const void *value, size_t size) {
    out[0] = kind, out[1] = 0, out[2] = size >> 8, out[3] = size;
    memcpy(out + 4, value, size);
    return size + 4;
}

static size_t request(uint8_t *out) {
    static const char application[] = "1.2.840.10008.3.1.1.1";
    uint8_t context[256] = {1, 0, 0, 0}, user[64];
    size_t at = 74, size = 4;
    memset(out, 0, at);
    out[0] = 1, out[7] = 1;
    memset(out + 10, ' ', 32);
    memcpy(out + 10, called, strlen(called));
    memcpy(out + 26, calling, strlen(calling));
    at += item(out + at, 0x10, application, strlen(application));
    size += item(context + size, 0x30, sop_class, strlen(sop_class));
    size += item(context + size, 0x40, syntax, strlen(syntax));
    at += item(out + at, 0x20, context, size);
    size = item(user, 0x51, "\0\1\0\0", 4);
    size += item(user + size, 0x52, "1.2.3.4", 7);
    at += item(out + at, 0x50, user, size);
    uint32_t length = htonl(at - 6);
    memcpy(out + 2, &length, 4);
    return at;
}

static size_t element(uint8_t *out, uint16_t number, const void *value, uint32_t size) {
    uint32_t even = size + size % 2;
    memset(out, 0, 8 + even);
    memcpy(out + 2, &number, 2);
    memcpy(out + 4, &even, 4);
    memcpy(out + 8, value, size);
    return 8 + even;
}

static size_t command(uint8_t *out, uint16_t message, const char *instance) {
    const uint16_t store = 1, medium = 0, there = 1;
    size_t at = 12 + 12;
    at += element(out + at, 0x0002, sop_class, strlen(sop_class));
    at += element(out + at, 0x0100, &store, 2);
    at += element(out + at, 0x0110, &message, 2);
    at += element(out + at, 0x0700, &medium, 2);
    at += element(out + at, 0x0800, &there, 2);
    at += element(out + at, 0x1000, instance, strlen(instance));
    uint32_t group = at - 24;
    element(out + 12, 0x0000, &group, 4);
    out[0] = 4, out[1] = 0;
    uint32_t pdu = htonl(at - 6), pdv = htonl(at - 10);
    memcpy(out + 2, &pdu, 4), memcpy(out + 6, &pdv, 4);
    out[10] = 1, out[11] = 3;
    return at;
}

/* -- one association --------------------------------------------------------------------------- */

static void read_exactly(int sock, void *into, size_t size) {
    while (size) {
        ssize_t got = read(sock, into, size);
        if (got <= 0) die("the receiver has gone");
        into = (char *)into + got, size -= got;
    }
}

static uint8_t read_pdu(int sock, uint8_t *into, size_t room) {
    read_exactly(sock, into, 6);
    uint32_t size;
    memcpy(&size, into + 2, 4);
    size = ntohl(size);
    if (size > room - 6) die("a long PDU");
    read_exactly(sock, into + 6, size);
    return into[0];
}

static void write_all(int sock, struct iovec *parts, int count) {
    while (count) {
        ssize_t sent = writev(sock, parts, count > 1000 ? 1000 : count);
        if (sent < 0) die("write");
        while (count && (size_t)sent >= parts->iov_len) sent -= parts->iov_len, parts++, count--;
        if (count) parts->iov_base = (char *)parts->iov_base + sent, parts->iov_len -= sent;
    }
}

static int connected(void) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    if (getaddrinfo(host, port, &hints, &found)) die("getaddrinfo");
    int sock = socket(found->ai_family, SOCK_STREAM, 0), one = 1;
    if (connect(sock, found->ai_addr, found->ai_addrlen)) die("connect");
    setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    freeaddrinfo(found);
    return sock;
}

static uint32_t maximum_length(const uint8_t *answer) {
    uint32_t size;
    memcpy(&size, answer + 2, 4);
    size = ntohl(size) + 6;
    for (uint32_t at = 74; at + 4 <= size;) {
        uint32_t length = answer[at + 2] << 8 | answer[at + 3];
        if (answer[at] == 0x21 && answer[at + 6]) die("the context was refused");
        if (answer[at] == 0x50) { at += 4; continue; }
        if (answer[at] == 0x51) { memcpy(&size, answer + at + 4, 4); return ntohl(size); }
        at += 4 + length;
    }
    return 0;
}

static uint16_t status(const uint8_t *response) {
    uint32_t size, length;
    memcpy(&size, response + 2, 4);
    size = ntohl(size) + 6;
    for (uint32_t at = 12; at + 8 < size; at += 8 + length) {
        memcpy(&length, response + at + 4, 4);
        if (response[at + 2] == 0 && response[at + 3] == 9)
            return response[at + 8] | response[at + 9] << 8;
    }
    return 0xffff;
}

static void *associate(void *argument) {
    double *times = argument;
    int number = (int)times[0], sock = connected();
    uint8_t *buffer = malloc(1 << 20), *copy = malloc(data_set_bytes);
    struct iovec open = {buffer, request(buffer)};
    write_all(sock, &open, 1);
    if (read_pdu(sock, buffer, 1 << 20) != 2) { fprintf(stderr, "rejected\n"); exit(2); }
    uint32_t most = maximum_length(buffer);
    /* The same for all receivers: 128 KiB, or less if they say so. */
    uint32_t size = ((most && most < 131072 ? most : 131072) - 6) & ~1u;
    size_t pieces = (data_set_bytes + size - 1) / size;
    uint8_t (*headers)[12] = malloc(pieces * 12);
    struct iovec *parts = malloc((2 * pieces + 1) * sizeof *parts);
    memcpy(copy, data_set, data_set_bytes);
    pthread_barrier_wait(&ready);
    for (int i = 0; i < per_association; i++) {
        char instance[65], digits[16];
        strcpy(instance, sop_instance);
        snprintf(digits, sizeof digits, "1%02d%06d", number % 100, i);
        size_t tail = strlen(instance) - 9;
        memcpy(instance + tail, digits, 9);
        memcpy(copy + uid_at + tail, digits, 9);
        parts[0] = (struct iovec){buffer, command(buffer, i % 65535 + 1, instance)};
        for (size_t p = 0, at = 0; p < pieces; p++, at += size) {
            uint32_t length = data_set_bytes - at < size ? data_set_bytes - at : size;
            uint32_t pdu = htonl(length + 6), pdv = htonl(length + 2);
            headers[p][0] = 4, headers[p][1] = 0;
            memcpy(headers[p] + 2, &pdu, 4), memcpy(headers[p] + 6, &pdv, 4);
            headers[p][10] = 1, headers[p][11] = p + 1 == pieces ? 2 : 0;
            parts[2 * p + 1] = (struct iovec){headers[p], 12};
            parts[2 * p + 2] = (struct iovec){copy + at, length};
        }
        double began = now();
        write_all(sock, parts, 2 * pieces + 1);
        if (read_pdu(sock, buffer, 1 << 20) != 4) { fprintf(stderr, "no response\n"); exit(2); }
        times[i] = now() - began;
        uint16_t code = status(buffer);
        if (code) { fprintf(stderr, "status %04x\n", code); exit(3); }
    }
    pthread_barrier_wait(&ready);
    struct iovec release = {(void *)"\5\0\0\0\0\4\0\0\0\0", 10};
    write_all(sock, &release, 1);
    read_pdu(sock, buffer, 1 << 20);
    close(sock);
    return NULL;
}

/* -- the file ---------------------------------------------------------------------------------- */

static void text(char *into, const uint8_t *value, size_t size) {
    memcpy(into, value, size);
    into[size] = 0;
    while (size && (into[size - 1] == 0 || into[size - 1] == ' ')) into[--size] = 0;
}

static void load(const char *path) {
    struct stat about;
    FILE *file = fopen(path, "rb");
    if (!file || fstat(fileno(file), &about)) die(path);
    uint8_t *all = malloc(about.st_size);
    if (fread(all, 1, about.st_size, file) != (size_t)about.st_size) die(path);
    uint32_t group;
    memcpy(&group, all + 140, 4);
    size_t at = 144, end = 144 + group;
    while (at < end) {
        uint16_t number = all[at + 2] | all[at + 3] << 8, size = all[at + 6] | all[at + 7] << 8;
        size_t value = at + 8, length = size;
        if (!memcmp(all + at + 4, "OB", 2)) memcpy(&length, all + at + 8, 4), value += 4, length &= 0xffffffff;
        if (number == 0x02) text(sop_class, all + value, length);
        if (number == 0x03) text(sop_instance, all + value, length);
        if (number == 0x10) text(syntax, all + value, length);
        at = value + length;
    }
    data_set = all + end, data_set_bytes = about.st_size - end;
    uint8_t *uid = memmem(data_set, 4096, sop_instance, strlen(sop_instance));
    if (!uid) { fprintf(stderr, "the file's UIDs differ\n"); exit(2); }
    uid_at = uid - data_set;
    fclose(file);
}

/* -- a receiver that throws everything away ---------------------------------------------------- */

static void *discard(void *argument) {
    int sock = (int)(intptr_t)argument;
    uint8_t *buffer = malloc(1 << 20), answer[512] = {2, 0, 0, 0, 0, 0, 0, 1};
    read_pdu(sock, buffer, 1 << 20);
    size_t at = 74 + item(answer + 74, 0x21, "\1\0\0\0", 4);
    uint8_t user[8];
    item(user, 0x51, "\0\2\0\0", 4);
    at += item(answer + at, 0x50, user, 8);
    uint32_t length = htonl(at - 6);
    memcpy(answer + 2, &length, 4);
    struct iovec part = {answer, at};
    write_all(sock, &part, 1);
    for (;;) {
        uint8_t header[12];
        read_exactly(sock, header, 10);
        if (header[0] == 5) break;
        read_exactly(sock, header + 10, 2);
        memcpy(&length, header + 2, 4);
        for (size_t left = ntohl(length) - 6; left;) {
            ssize_t got = read(sock, buffer, left < 1 << 20 ? left : 1 << 20);
            if (got <= 0) return NULL;
            left -= got;
        }
        if (header[11] == 2) {
            uint8_t response[] = {4, 0, 0, 0, 0, 16, 0, 0, 0, 12, 1, 3, 0, 0, 0, 9, 2, 0, 0, 0, 0, 0};
            struct iovec said = {response, sizeof response};
            write_all(sock, &said, 1);
        }
    }
    struct iovec said = {(void *)"\6\0\0\0\0\4\0\0\0\0", 10};
    write_all(sock, &said, 1);
    return NULL;
}

static void *discard_all(void *argument) {
    int listener = (int)(intptr_t)argument, one = 1;
    for (;;) {
        pthread_t thread;
        int sock = accept(listener, NULL, NULL);
        setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        pthread_create(&thread, NULL, discard, (void *)(intptr_t)sock);
    }
    return NULL;
}

static void start_discard(void) {
    static char digits[8];
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&at, sizeof at) || listen(listener, 64)) die("listen");
    getsockname(listener, (void *)&at, &size);
    snprintf(digits, sizeof digits, "%d", ntohs(at.sin_port));
    host = "127.0.0.1", port = digits;
    pthread_t thread;
    pthread_create(&thread, NULL, discard_all, (void *)(intptr_t)listener);
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int count, char **words) {
    if (count < 8) { fprintf(stderr, "see the source\n"); return 2; }
    host = words[1], port = words[2], called = words[3], calling = words[4];
    int associations = atoi(words[5]), instances = atoi(words[6]);
    load(words[7]);
    if (count > 8) start_discard();
    per_association = instances / associations;
    instances = per_association * associations;
    double *times = calloc(instances, sizeof *times);
    pthread_t *threads = malloc(associations * sizeof *threads);
    pthread_barrier_init(&ready, NULL, associations + 1);
    for (int i = 0; i < associations; i++) {
        times[i * per_association] = i;
        pthread_create(&threads[i], NULL, associate, times + i * per_association);
    }
    pthread_barrier_wait(&ready);
    double began = now();
    pthread_barrier_wait(&ready);
    double seconds = now() - began;
    for (int i = 0; i < associations; i++) pthread_join(threads[i], NULL);
    qsort(times, instances, sizeof *times, by_size);
    printf("%d %.6f %zu %.0f %.0f\n", instances, seconds, data_set_bytes,
           times[instances / 2] * 1e6, times[(int)(instances * 0.99)] * 1e6);
    return 0;
}
