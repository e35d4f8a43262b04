{{/*
The network flows of each component: its clients and its servers, and no others.

Takes (list $ component); returns the spec of its NetworkPolicy.  An empty list of peers in the
values means all, for which Kubernetes leaves out `from` or `to`.
*/}}
{{- define "dicom-adapter.networkPolicySpec" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $policy := $root.Values.networkPolicy -}}
{{- $from := $policy.from -}}
{{- $to := $policy.to -}}
{{- $metrics := list (dict "ports" (list 9090) "peers" $from.metrics "key" "from") -}}
{{- $dns := dict "dns" true "peers" $to.dns "key" "to" -}}
{{- $redis := dict "key" "to" -}}
{{- if $root.Values.redis.enabled -}}
  {{- $redis = dict "key" "to" "ports" (list 6379) "peers" (include "dicom-adapter.podsOf" (list $root "redis") | fromYamlArray) -}}
{{- else -}}
  {{- $ports := default (list (include "dicom-adapter.portOf" (list $root.Values.externalRedis.url 6379) | int)) $root.Values.externalRedis.ports -}}
  {{- $redis = dict "key" "to" "ports" $ports "peers" $to.redis -}}
{{- end -}}
{{- $database := dict "key" "to" -}}
{{- if $root.Values.postgresql.enabled -}}
  {{- $database = dict "key" "to" "ports" (list 5432) "peers" (include "dicom-adapter.podsOf" (list $root "postgresql") | fromYamlArray) -}}
{{- else -}}
  {{- $ports := default (list (include "dicom-adapter.portOf" (list $root.Values.externalDatabase.url 5432) | int)) $root.Values.externalDatabase.ports -}}
  {{- $database = dict "key" "to" "ports" $ports "peers" $to.database -}}
{{- end -}}
{{- $ingress := list -}}
{{- $egress := list -}}
{{- $whole := list -}}
{{- if eq $name "scp" -}}
  {{- $senders := $from.dicom -}}
  {{- if and $senders $root.Values.echoTest.enabled }}{{ $senders = concat $senders (include "dicom-adapter.podsOf" (list $root "echo") | fromYamlArray) }}{{ end -}}
  {{- $ingress = append $metrics (dict "ports" (list 11112) "peers" $senders "key" "from") -}}
  {{- $egress = list $dns $redis $database -}}
{{- else if has $name (splitList " " (include "dicom-adapter.stages" $root)) -}}
  {{- $ingress = $metrics -}}
  {{- $egress = list $dns $redis $database -}}
  {{- if eq $name "export" }}{{ $egress = append $egress (dict "ports" list "peers" $to.destinations "key" "to") }}{{ end -}}
  {{- if eq $name "pipeline" }}{{ $whole = $to.pipelines }}{{ end -}}
{{- else if eq $name "api" -}}
  {{- $askers := list -}}
  {{- if $from.api -}}
    {{- $askers = concat $from.api $from.metrics -}}
    {{- if include "dicom-adapter.usesKeda" $root }}{{ $askers = concat $askers $from.keda }}{{ end -}}
  {{- end -}}
  {{- $ingress = list (dict "ports" (list 5000) "peers" $askers "key" "from") -}}
  {{- $egress = list $dns $redis $database -}}
{{- else if eq $name "flower" -}}
  {{- $ingress = list (dict "ports" (list 5555) "peers" $from.flower "key" "from") -}}
  {{- $egress = list $dns $redis -}}
{{- else if eq $name "operator" -}}
  {{- $ingress = $metrics -}}
  {{- $egress = list $dns $database (dict "ports" $policy.kubernetesPorts "peers" $to.kubernetes "key" "to") -}}
{{- else if eq $name "passwords" -}}
  {{- $egress = list $dns (dict "ports" $policy.kubernetesPorts "peers" $to.kubernetes "key" "to") -}}
{{- else if eq $name "migrate" -}}
  {{- $egress = list $dns $database -}}
{{- else if eq $name "echo" -}}
  {{- $egress = list $dns (dict "ports" (list 11112) "peers" (include "dicom-adapter.podsOf" (list $root "scp") | fromYamlArray) "key" "to") -}}
{{- else if eq $name "redis" -}}
  {{- $askers := list "scp" -}}
  {{- $askers = concat $askers (splitList " " (include "dicom-adapter.stages" $root)) (list "api") -}}
  {{- if $root.Values.flower.enabled }}{{ $askers = append $askers "flower" }}{{ end -}}
  {{- $ingress = list (dict "ports" (list 6379) "peers" (include "dicom-adapter.podsOf" (prepend $askers $root) | fromYamlArray) "key" "from") -}}
{{- else if eq $name "postgresql" -}}
  {{- $askers := without (splitList " " (include "dicom-adapter.components" $root)) "flower" -}}
  {{- if $root.Values.migrate.useHelmHooks }}{{ $askers = append $askers "migrate" }}{{ end -}}
  {{- $ingress = list (dict "ports" (list 5432) "peers" (include "dicom-adapter.podsOf" (prepend $askers $root) | fromYamlArray) "key" "from") -}}
{{- end -}}
podSelector:
  matchLabels:
    {{- include "dicom-adapter.selector" (list $root $name) | nindent 4 }}
policyTypes: [Ingress, Egress]
{{- if $ingress }}
ingress:
  {{- range $ingress }}
  {{- include "dicom-adapter.networkRule" . | nindent 2 }}
  {{- end }}
{{- end }}
{{- if or $egress $whole }}
egress:
  {{- range $egress }}
  {{- include "dicom-adapter.networkRule" . | nindent 2 }}
  {{- end }}
  {{- with $whole }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* One rule, from {key, ports, peers}; the key is `from` or `to`. */}}
{{- define "dicom-adapter.networkRule" -}}
{{- $rule := dict -}}
{{- $ports := list -}}
{{- if .dns -}}
  {{- $ports = list (dict "port" 53 "protocol" "UDP") (dict "port" 53 "protocol" "TCP") -}}
{{- else -}}
  {{- range .ports }}{{ $ports = append $ports (dict "port" . "protocol" "TCP") }}{{ end -}}
{{- end -}}
{{- if $ports }}{{ $_ := set $rule "ports" $ports }}{{ end -}}
{{- if .peers }}{{ $_ := set $rule .key .peers }}{{ end -}}
{{- list $rule | toYaml -}}
{{- end -}}

{{/* Peers: the pods of some components of this release.  Takes (list $ component...). */}}
{{- define "dicom-adapter.podsOf" -}}
{{- $root := index . 0 -}}
- podSelector:
    matchLabels:
      {{- include "dicom-adapter.release" $root | nindent 6 }}
    matchExpressions:
      - key: app.kubernetes.io/component
        operator: In
        values: {{ rest . | toJson }}
{{- end -}}

{{/* The port of a URL.  Takes (list url default). */}}
{{- define "dicom-adapter.portOf" -}}
{{- $host := (urlParse (index . 0)).host -}}
{{- default (index . 1 | toString) (regexFind ":[0-9]+$" $host | trimPrefix ":") -}}
{{- end -}}

{{- define "dicom-adapter.usesKeda" -}}
{{- range $name := splitList " " (include "dicom-adapter.stages" .) -}}
{{- $component := include "dicom-adapter.component" (list $ $name) | fromYaml -}}
{{- if $component.values.autoscaling.keda.enabled }}yes{{ end -}}
{{- end -}}
{{- end -}}
