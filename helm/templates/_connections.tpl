{{/*
The most connections to PostgreSQL that the adapter's processes may have together, at their largest
number of replicas, and ten for upgrades, pods that are replaced, and people.  The numbers of each
process are those of adapter/ledger/engines.py.
*/}}
{{- define "dicom-adapter.connections" -}}
{{- $root := . -}}
{{- $settings := $root.Values.settings -}}
{{- $stages := splitList " " (include "dicom-adapter.stages" $root) -}}
{{- $most := 10 -}}{{/* the default of `database > connections` */}}
{{- $sum := 10 -}}
{{- range $name := splitList " " (include "dicom-adapter.components" $root) -}}
  {{- $component := include "dicom-adapter.component" (list $root $name) | fromYaml -}}
  {{- $replicas := int (default 0 $component.replicas) -}}
  {{- range $kind, $one := default dict $component.values.autoscaling -}}
    {{- if $one.enabled }}{{ $replicas = int $one.maxReplicas }}{{ end -}}
  {{- end -}}
  {{- $each := 0 -}}
  {{- if has $name $stages -}}
    {{- $runs := dig "workers" "shortConcurrency" 4 $settings -}}
    {{- if eq $name "pipeline" }}{{ $runs = dig "workers" "pipelineConcurrency" 1 $settings }}{{ end -}}
    {{- if eq $name "export" }}{{ $runs = dig "dicom" "scu" "maximumNumberOfAssociations" 8 $settings }}{{ end -}}
    {{- $each = min $most (add 2 (default $runs $component.values.concurrency)) -}}
  {{- else if eq $name "scp" -}}
    {{- $each = mul (min $most 2) (default 4 (dig "dicom" "scp" "processes" 0 $settings)) -}}
  {{- else if eq $name "api" -}}
    {{- $each = min $most 5 -}}
  {{- else if eq $name "operator" -}}
    {{- $each = min $most 2 -}}
  {{- end -}}
  {{- $sum = add $sum (mul $replicas $each) -}}
{{- end -}}
{{- $sum -}}
{{- end -}}
