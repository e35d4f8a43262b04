{{/* The adapter's settings, and the Secrets of its passwords. */}}

{{- define "dicom-adapter.redisUrl" -}}
{{- if .Values.redis.enabled -}}
redis://{{ include "dicom-adapter.fullname" . }}-redis:6379/0
{{- else -}}
{{- .Values.externalRedis.url -}}
{{- end -}}
{{- end -}}

{{- define "dicom-adapter.databaseUrl" -}}
{{- if .Values.postgresql.enabled -}}
postgresql+psycopg://dicom_adapter@{{ include "dicom-adapter.fullname" . }}-postgresql:5432/dicom_adapter
{{- else -}}
{{- .Values.externalDatabase.url -}}
{{- end -}}
{{- end -}}

{{/*
appsettings.json: the settings from the values, overridden by those that the chart sets itself.  The
paths of the password files are not here: each role gets only its own, by its environment.
*/}}
{{- define "dicom-adapter.settings" -}}
{{- $api := printf "%s-api" (include "dicom-adapter.fullname" .) -}}
{{- $service := printf "%s.%s" $api .Release.Namespace -}}
{{- $names := list $api $service (printf "%s.svc" $service) (printf "%s.svc.cluster.local" $service) -}}
{{- $names = concat $names (default list (default dict .Values.settings.api).hostNames) -}}
{{- $own := dict
      "data" "/var/lib/dicom-adapter/data"
      "storage" (dict "temporary" "/spool")
      "dicom" (dict "scp" (dict "host" "" "port" 11112))
      "api" (dict "host" .Values.listen "port" 5000 "hostNames" $names "withoutAuthentication" true)
      "flower" (dict "host" .Values.listen "port" 5555)
      "metrics" (dict "host" "" "port" 9090)
      "broker" (dict "url" (include "dicom-adapter.redisUrl" .))
      "database" (dict "url" (include "dicom-adapter.databaseUrl" .))
-}}
{{- dict "DicomAdapter" (mergeOverwrite (deepCopy .Values.settings) $own) | toPrettyJson -}}
{{- end -}}

{{/* The passwords that the values name no Secret for, as a list of words. */}}
{{- define "dicom-adapter.ownPasswords" -}}
{{- $own := list -}}
{{- range $name := list "redis" "postgresql" "flower" -}}
{{- $values := get $.Values $name -}}
{{- if and $values.enabled (not $values.existingSecret) }}{{ $own = append $own (printf "%s-password" $name) }}{{ end -}}
{{- end -}}
{{- join " " $own -}}
{{- end -}}

{{/* The Secret that a job of the chart creates. */}}
{{- define "dicom-adapter.ownSecret" -}}
{{ include "dicom-adapter.fullname" . }}-passwords
{{- end -}}

{{/* The Secret and key of a password, as YAML {secret, key}.  Takes (list $ which). */}}
{{- define "dicom-adapter.password" -}}
{{- $root := index . 0 -}}
{{- $which := index . 1 -}}
{{- $values := get $root.Values $which -}}
{{- if and (eq $which "redis") (not $values.enabled) }}{{ $values = $root.Values.externalRedis }}{{ end -}}
{{- if and (eq $which "postgresql") (not $values.enabled) }}{{ $values = $root.Values.externalDatabase }}{{ end -}}
{{- dict
      "secret" (default (include "dicom-adapter.ownSecret" $root) $values.existingSecret)
      "key" (ternary $values.existingSecretKey (printf "%s-password" $which) (not (empty $values.existingSecret)))
    | toYaml -}}
{{- end -}}
