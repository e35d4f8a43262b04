{{/*
A pod of the adapter.  Takes (list $ component), the component as "dicom-adapter.component" gives it.
*/}}
{{- define "dicom-adapter.podTemplate" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := $component.values -}}
{{- $labels := include "dicom-adapter.podLabels" (list $root $component.name) | fromYaml -}}
{{- if $component.spool }}{{ $_ := set $labels "dicom.adapter.io/spool" (include "dicom-adapter.fullname" $root) }}{{ end -}}
{{- $annotations := dict "checksum/settings" (include "dicom-adapter.settings" $root | sha256sum) -}}
{{- if and $root.Values.monitoring.annotations $component.ports -}}
  {{- $_ := set $annotations "prometheus.io/scrape" "true" -}}
  {{- $_ := set $annotations "prometheus.io/path" "/metrics" -}}
  {{- $_ := set $annotations "prometheus.io/port" (toString (last $component.ports).containerPort) -}}
{{- end -}}
metadata:
  labels:
    {{- merge $labels $values.podLabels | toYaml | nindent 4 }}
  annotations:
    {{- merge $annotations $values.podAnnotations | toYaml | nindent 4 }}
spec:
  {{- include "dicom-adapter.podSpec" . | nindent 2 }}
{{- end -}}

{{- define "dicom-adapter.podSpec" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := $component.values -}}
{{- $once := has $component.name (list "passwords" "migrate" "echo") -}}
{{- $env := include "dicom-adapter.env" . | fromYamlArray -}}
{{- $volumes := include "dicom-adapter.volumes" . | fromYamlArray -}}
{{- include "dicom-adapter.refuseTaken" (list $component.name "extraEnv" $env $values.extraEnv) -}}
{{- include "dicom-adapter.refuseTaken" (list $component.name "extraVolumes" $volumes $values.extraVolumes) -}}
{{- if $once }}
restartPolicy: Never
{{- end }}
serviceAccountName: {{ include "dicom-adapter.fullname" $root }}-{{ $component.name }}
automountServiceAccountToken: {{ has $component.name (list "operator" "passwords") }}
enableServiceLinks: false
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- if not $once }}
# preStop, the time for open work, and 15 s for everything that stops after it.
terminationGracePeriodSeconds: {{ add (ceil $values.preStopSeconds) (ceil $values.stopSeconds) 15 }}
{{- end }}
securityContext:
  {{- toYaml $values.podSecurityContext | nindent 2 }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "dicom-adapter.affinity" . | fromYaml }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if not $once }}
{{- if kindIs "invalid" $values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ $key }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "dicom-adapter.selector" (list $root $component.name) | nindent 8 }}
  {{- end }}
{{- else if $values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml $values.topologySpreadConstraints | nindent 2 }}
{{- end }}
{{- end }}
{{- if or $component.waits $values.extraInitContainers }}
initContainers:
  {{- if $component.waits }}
  # Fails, and is restarted, until the database answers; creates the schema in a new one, and the
  # spool if the ledger names none.
  - name: ledger
    args: [ledger, upgrade, --create-spool]
    {{- include "dicom-adapter.container" . | nindent 4 }}
  {{- end }}
  {{- with $values.extraInitContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
containers:
  - name: {{ $component.name }}
    args:
      {{- toYaml $component.args | nindent 6 }}
    {{- include "dicom-adapter.container" . | nindent 4 }}
    {{- with $component.ports }}
    ports:
      {{- range . }}
      - name: {{ .name }}
        containerPort: {{ .containerPort }}
        protocol: TCP
      {{- end }}
    # The process itself reports liveness and readiness; no probe depends on Redis.
    startupProbe:
      httpGet:
        path: {{ $component.probes.live }}
        port: {{ $component.probes.port }}
      periodSeconds: 3
      timeoutSeconds: 3
      failureThreshold: 60
    livenessProbe:
      httpGet:
        path: {{ $component.probes.live }}
        port: {{ $component.probes.port }}
      periodSeconds: 15
      timeoutSeconds: 5
      failureThreshold: 4
    readinessProbe:
      httpGet:
        path: {{ $component.probes.ready }}
        port: {{ $component.probes.port }}
      periodSeconds: 5
      timeoutSeconds: 5
      failureThreshold: 2
    {{- end }}
    {{- if $values.preStopSeconds }}
    lifecycle:
      preStop:
        exec:
          command: [sleep, {{ $values.preStopSeconds | toString | quote }}]
    {{- end }}
  {{- with $values.extraContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumes:
  {{- concat $volumes $values.extraVolumes | toYaml | nindent 2 }}
{{- end -}}

{{/* The common part of all containers of the adapter. */}}
{{- define "dicom-adapter.container" -}}
{{- $values := (index . 1).values -}}
image: {{ include "dicom-adapter.image" $values.image | quote }}
imagePullPolicy: {{ $values.image.pullPolicy }}
env:
  {{- concat (include "dicom-adapter.env" . | fromYamlArray) $values.extraEnv | toYaml | nindent 2 }}
securityContext:
  {{- toYaml $values.securityContext | nindent 2 }}
{{- with $values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  {{- concat (include "dicom-adapter.mounts" . | fromYamlArray) $values.extraVolumeMounts | toYaml | nindent 2 }}
{{- end -}}

{{/* Refuse a name that the chart uses itself: a server-side apply would refuse it later. */}}
{{- define "dicom-adapter.refuseTaken" -}}
{{- $names := list -}}
{{- range index . 2 }}{{ $names = append $names .name }}{{ end -}}
{{- $component := index . 0 -}}
{{- $key := index . 1 -}}
{{- range index . 3 -}}
  {{- if has .name $names }}{{ fail (printf "%s: %s: %q is taken: the chart sets it, or it is there twice" $component $key .name) }}{{ end -}}
  {{- $names = append $names .name -}}
{{- end -}}
{{- end -}}

{{- define "dicom-adapter.env" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
- name: DICOMADAPTER_CONFIG
  value: /etc/dicom-adapter/appsettings.json
{{- if has $component.name (list "scp" "notification" "grouping" "submission" "pipeline" "export" "reclamation") }}
- name: DICOMADAPTER__WORKERS__STOPSECONDS
  value: {{ $component.values.stopSeconds | toString | quote }}
{{- end }}
{{- range $which := $component.secrets }}
- name: DICOMADAPTER__{{ get (dict "redis" "BROKER" "postgresql" "DATABASE" "flower" "FLOWER") $which }}__PASSWORDFILE
  value: /run/secrets/dicom-adapter/{{ $which }}-password
{{- end }}
{{- end -}}

{{- define "dicom-adapter.volumes" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
- name: settings
  configMap:
    name: {{ include "dicom-adapter.fullname" $root }}-{{ ternary "migrate" "settings" (eq $component.name "migrate") }}
- name: tmp
  emptyDir:
    sizeLimit: {{ $component.values.temporarySize }}
- name: data
  emptyDir:
    sizeLimit: {{ $component.values.temporarySize }}
{{- if $component.secrets }}
- name: passwords
  projected:
    defaultMode: 0440
    sources:
      {{- range $which := $component.secrets }}
      {{- $at := include "dicom-adapter.password" (list $root $which) | fromYaml }}
      - secret:
          name: {{ $at.secret }}
          items:
            - key: {{ $at.key }}
              path: {{ $which }}-password
      {{- end }}
{{- end }}
{{- if $component.spool }}
- name: spool
  persistentVolumeClaim:
    claimName: {{ include "dicom-adapter.spoolClaim" $root }}
{{- end }}
{{- end -}}

{{- define "dicom-adapter.mounts" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
- name: settings
  mountPath: /etc/dicom-adapter
  readOnly: true
- name: tmp
  mountPath: /tmp
- name: data
  mountPath: /var/lib/dicom-adapter
{{- if $component.secrets }}
- name: passwords
  mountPath: /run/secrets/dicom-adapter
  readOnly: true
{{- end }}
{{- if $component.spool }}
- name: spool
  mountPath: /spool
  {{- with $root.Values.spool.subPath }}
  subPath: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/*
A ReadWriteOnce volume serves one node: this rule keeps all pods that mount it on the same node.  The
first pod matches itself, so it may run on any node.
*/}}
{{- define "dicom-adapter.affinity" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $affinity := deepCopy $component.values.affinity -}}
{{- if and $component.spool (eq $root.Values.spool.accessMode "ReadWriteOnce") -}}
  {{- $together := dict
        "topologyKey" "kubernetes.io/hostname"
        "labelSelector" (dict "matchLabels" (dict "dicom.adapter.io/spool" (include "dicom-adapter.fullname" $root)))
  -}}
  {{- $key := "requiredDuringSchedulingIgnoredDuringExecution" -}}
  {{- $pods := default dict $affinity.podAffinity -}}
  {{- $_ := set $pods $key (append (default list (get $pods $key)) $together) -}}
  {{- $_ := set $affinity "podAffinity" $pods -}}
{{- end -}}
{{- toYaml $affinity -}}
{{- end -}}

{{- define "dicom-adapter.spoolClaim" -}}
{{- default (printf "%s-spool" (include "dicom-adapter.fullname" .)) .Values.spool.existingClaim -}}
{{- end -}}
