{{/* Names and labels. */}}

{{/*
The beginning of all names.  A Service's name has to begin with a letter, and a release's need not.
A name that is too long is cut, and a part of its digest keeps it apart from others that begin alike.
*/}}
{{- define "dicom-adapter.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- if not (regexMatch "^[a-z]" $full) }}{{ $full = printf "release-%s" $full }}{{ end -}}
{{- if gt (len $full) 40 }}{{ $full = printf "%s-%s" ($full | trunc 31 | trimAll "-.") ($full | sha256sum | trunc 8) }}{{ end -}}
{{- $full | replace "." "-" -}}
{{- end -}}
{{- end -}}

{{/* What all objects of a release have in common.  Takes $.  A name may be a number: it is quoted. */}}
{{- define "dicom-adapter.release" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* What selects the pods of a component.  Takes (list $ component). */}}
{{- define "dicom-adapter.selector" -}}
{{- $root := index . 0 -}}
{{ include "dicom-adapter.release" $root }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* The labels of an object.  Takes (list $ component). */}}
{{- define "dicom-adapter.labels" -}}
{{- $root := index . 0 -}}
{{- $own := include "dicom-adapter.selector" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/version" $root.Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "dicom-adapter" -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_") -}}
{{- merge $own $root.Values.commonLabels | toYaml -}}
{{- end -}}

{{/* The labels of a pod: none of a version, which would replace pods that have not changed. */}}
{{- define "dicom-adapter.podLabels" -}}
{{- $own := include "dicom-adapter.selector" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "dicom-adapter" -}}
{{- merge $own (index . 0).Values.commonLabels | toYaml -}}
{{- end -}}

{{/* metadata of an object of a component.  Takes (list $ component), or (list $ component name). */}}
{{- define "dicom-adapter.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "dicom-adapter.fullname" $root }}-{{ last . }}
namespace: {{ $root.Release.Namespace | quote }}
labels:
  {{- include "dicom-adapter.labels" (list $root (index . 1)) | nindent 2 }}
{{- end -}}

{{/* An image.  Takes a map like `image`, with a tag or a digest. */}}
{{- define "dicom-adapter.image" -}}
{{- if .registry }}{{ .registry }}/{{ end -}}
{{- .repository -}}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end -}}
{{- end -}}
