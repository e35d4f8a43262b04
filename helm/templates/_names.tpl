{{/* Names and labels. */}}

{{- define "dicom-adapter.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects the pods of a component.  Takes (list $ component). */}}
{{- define "dicom-adapter.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
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
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "dicom-adapter.labels" (list $root (index . 1)) | nindent 2 }}
{{- end -}}

{{/* An image.  Takes a map like `image`, with a tag or a digest. */}}
{{- define "dicom-adapter.image" -}}
{{- if .registry }}{{ .registry }}/{{ end -}}
{{- .repository -}}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end -}}
{{- end -}}
