{{/*
The components of the adapter with their values: the defaults, overridden by the component's own.
Templates take a component as the map that this returns.

  name       of the component, which is also its label
  values     the merged values
  args       of the `dicom-adapter` command
  probes     the port's name, and the paths of the liveness and readiness probes
  spool      whether it mounts the spool
  secrets    the servers whose passwords it gets: redis, postgresql, flower
  waits      whether it waits for the ledger before it starts: a worker cannot work without it.
             The receiver never waits: it keeps its promise while the ledger is down.
  replicas   their number, or nothing if an autoscaler sets it

In addition to the deployed components there are three that run once: passwords, migrate and echo.
*/}}

{{- define "dicom-adapter.stages" -}}
notification grouping submission pipeline export reclamation
{{- end -}}

{{/* The components that are installed, as a list of names. */}}
{{- define "dicom-adapter.components" -}}
{{- $found := concat (list "scp") (splitList " " (include "dicom-adapter.stages" .)) (list "api") -}}
{{- if .Values.flower.enabled }}{{ $found = append $found "flower" }}{{ end -}}
{{- if .Values.operator.enabled }}{{ $found = append $found "operator" }}{{ end -}}
{{- join " " $found -}}
{{- end -}}

{{/* Those that mount the spool. */}}
{{- define "dicom-adapter.spoolComponents" -}}
{{- $found := splitList " " (include "dicom-adapter.components" .) -}}
{{- without $found "flower" | join " " -}}
{{- end -}}

{{/* A component as YAML.  Takes (list $ name). */}}
{{- define "dicom-adapter.component" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $isStage := has $name (splitList " " (include "dicom-adapter.stages" $root)) -}}
{{- $own := default dict ($isStage | ternary (get $root.Values.stages $name) (get $root.Values $name)) -}}
{{- $values := mergeOverwrite (dict "replicas" 1) (deepCopy $root.Values.defaults) (deepCopy $own) -}}
{{- $image := deepCopy $root.Values.image -}}
{{- /* A digest belongs to one repository. */ -}}
{{- if (default dict $own.image).repository }}{{ $_ := unset $image "digest" }}{{ end -}}
{{- $image = mergeOverwrite $image (deepCopy (default dict $own.image)) -}}
{{- if not $image.tag }}{{ $_ := set $image "tag" $root.Chart.AppVersion }}{{ end -}}
{{- $_ := set $values "image" $image -}}
{{- $args := list $name -}}
{{- $probes := dict "port" "metrics" "live" "/live" "ready" "/ready" -}}
{{- $ports := list (dict "name" "metrics" "containerPort" 9090) -}}
{{- $secrets := list "redis" "postgresql" -}}
{{- if $isStage -}}
  {{- $args = list "worker" $name -}}
  {{- if $values.concurrency }}{{ $args = concat $args (list "--concurrency" (toString $values.concurrency)) }}{{ end -}}
  {{- $_ := set $values "autoscaling" (mergeOverwrite (deepCopy $root.Values.stageAutoscaling) (deepCopy (default dict $own.autoscaling))) -}}
{{- else if eq $name "scp" -}}
  {{- $ports = prepend $ports (dict "name" "dicom" "containerPort" 11112) -}}
{{- else if eq $name "api" -}}
  {{- /* It is ready as soon as it listens: while the ledger is away, it answers what is wrong. */ -}}
  {{- $ports = list (dict "name" "rest" "containerPort" 5000) -}}
  {{- $probes = dict "port" "rest" "live" "/health/live" "ready" "/health/live" -}}
{{- else if eq $name "flower" -}}
  {{- $ports = list (dict "name" "flower" "containerPort" 5555) -}}
  {{- $probes = dict "port" "flower" "live" "/healthcheck" "ready" "/healthcheck" -}}
  {{- $secrets = list "redis" "flower" -}}
{{- else if eq $name "operator" -}}
  {{- $secrets = list "postgresql" -}}
{{- else if eq $name "migrate" -}}
  {{- $args = list "ledger" "upgrade" -}}
  {{- $ports = list -}}
  {{- $secrets = list "postgresql" -}}
{{- else if eq $name "passwords" -}}
  {{- $args = concat (list "create-passwords" (include "dicom-adapter.ownSecret" $root)) (splitList " " (include "dicom-adapter.ownPasswords" $root)) -}}
  {{- $ports = list -}}
  {{- $secrets = list -}}
{{- else if eq $name "echo" -}}
  {{- $args = concat (list "echo" "--calling" $root.Values.echoTest.callingAETitle) ($root.Values.echoTest.strict | ternary list (list "--accept-rejection")) (list $root.Values.echoTest.calledAETitle (printf "%s-dicom" (include "dicom-adapter.fullname" $root)) (toString $root.Values.scp.service.port)) -}}
  {{- $ports = list -}}
  {{- $secrets = list -}}
{{- end -}}
{{- if not (or $root.Values.redis.enabled $root.Values.externalRedis.existingSecret) }}{{ $secrets = without $secrets "redis" }}{{ end -}}
{{- if not (or $root.Values.postgresql.enabled $root.Values.externalDatabase.existingSecret) }}{{ $secrets = without $secrets "postgresql" }}{{ end -}}
{{- $scaling := default dict $values.autoscaling -}}
{{- $component := dict
      "name" $name
      "values" $values
      "args" $args
      "ports" $ports
      "probes" $probes
      "secrets" $secrets
      "waits" (or $isStage (eq $name "operator"))
      "spool" (has $name (splitList " " (include "dicom-adapter.spoolComponents" $root)))
-}}
{{- if not (or (default dict $scaling.keda).enabled (default dict $scaling.hpa).enabled) }}{{ $_ := set $component "replicas" $values.replicas }}{{ end -}}
{{- toYaml $component -}}
{{- end -}}
