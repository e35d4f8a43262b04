# SPDX-License-Identifier: Apache-2.0
"""The pipeline stages in order, a Celery queue for each, and how a wake-up is carried.

A message is a wake-up ("this stage has work").  It is a hint and may be lost at any moment: the
ledger says what is due.  The broker's address is not here, because it belongs to one adapter and
comes from its settings (see ``adapter.stages``).
"""

from kombu import Queue

#: The pipeline stages, in order.  Each is one Celery task, one queue and one worker pool,
#: all three of the same name.
STAGES = ("notification", "grouping", "submission", "pipeline", "export", "reclamation")

# On the default exchange the routing key is the queue's name: no binding can be lost.
task_queues = [Queue(stage, routing_key=stage) for stage in STAGES]
task_routes = {stage: {"queue": stage} for stage in STAGES}
task_create_missing_queues = False  # a typo in a queue's name fails instead of vanishing
task_default_queue = STAGES[0]

task_serializer = "json"
accept_content = ["json"]
task_ignore_result = True
result_backend = None
task_acks_late = False  # a lost wake-up costs seconds: the due-work poll repeats it
task_publish_retry_policy = {"max_retries": 1, "interval_start": 0, "interval_step": 0.2}

worker_pool = "threads"  # stages wait for disks, peers and child processes
worker_concurrency = "auto"  # each stage has its own bound, from the settings (workers.runner)
worker_prefetch_multiplier = 1
worker_disable_prefetch = True  # a wake-up goes to a free worker, never to a busy one
worker_send_task_events = True
worker_hijack_root_logger = False
worker_proc_alive_timeout = 30.0
task_time_limit = None  # each stage bounds its own work; a pipeline may run for hours
task_soft_time_limit = None

broker_connection_retry_on_startup = True
broker_connection_max_retries = None
worker_cancel_long_running_tasks_on_connection_loss = False
broker_transport_options = {
    "visibility_timeout": 3600,
    "socket_timeout": 10,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "health_check_interval": 10,
    # A wake-up that cannot be delivered is dropped at once: kombu's default tries for six seconds.
    "max_retries": 1,
    "interval_start": 0,
    "interval_step": 0.1,
    "interval_max": 0.1,
    "priority_steps": [0],
}
