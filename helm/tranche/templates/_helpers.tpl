{{/* Names: at most 30 characters, so that they stay below 63 with a pool's, a controller's and KEDA's own. */}}
{{- define "tranche.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 30 | trimSuffix "-" -}}
{{- end -}}

{{- define "tranche.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $whole := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $whole .Values.fullnameOverride | trunc 30 | trimSuffix "-" -}}
{{- end -}}

{{/* (dict "root" $ "component" "coordinator") */}}
{{- define "tranche.selector" -}}
app.kubernetes.io/name: {{ include "tranche.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "tranche.labels" -}}
{{ include "tranche.selector" . }}
app.kubernetes.io/part-of: tranche
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tranche.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "tranche.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* (dict "root" $ "image" map): what the map leaves empty comes from .Values.image. A tag or digest of its own never
meets the other of the shared image. */}}
{{- define "tranche.image" -}}
{{- $shared := .root.Values.image -}}
{{- $own := .image -}}
{{- $version := ternary $shared $own (and (empty $own.tag) (empty $own.digest) (empty $own.repository)) -}}
{{- $repository := default $shared.repository $own.repository -}}
{{- if $version.digest -}}
{{ $repository }}@{{ $version.digest }}
{{- else -}}
{{ $repository }}:{{ default .root.Chart.AppVersion $version.tag }}
{{- end -}}
{{- end -}}

{{/* The pod's part; every pod of the chart has it. (dict "root" $ "security" map "serviceAccount" name) */}}
{{- define "tranche.pod" -}}
serviceAccountName: {{ .serviceAccount }}
automountServiceAccountToken: false
# A service `tranche-coordinator` would else set TRANCHE_COORDINATOR_PORT, which the coordinator takes for its own.
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  {{- with .security }}
  {{- if .runAsUser }}
  runAsUser: {{ .runAsUser }}
  {{- end }}
  {{- if .runAsGroup }}
  runAsGroup: {{ .runAsGroup }}
  {{- end }}
  {{- if .fsGroup }}
  fsGroup: {{ .fsGroup }}
  # A library may have millions of files: they aren't walked at each start.
  fsGroupChangePolicy: OnRootMismatch
  {{- end }}
  {{- with .supplementalGroups }}
  supplementalGroups: {{ toJson . }}
  {{- end }}
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "tranche.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* Where a pod runs. The map has nodeSelector, tolerations, affinity, priorityClassName. */}}
{{- define "tranche.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "tranche.tls" -}}
{{- if or .Values.tls.existingSecret .Values.tls.certManager.enabled }}true{{ end -}}
{{- end -}}

{{- define "tranche.tlsSecret" -}}
{{- default (printf "%s-tls" (include "tranche.fullname" .)) .Values.tls.existingSecret -}}
{{- end -}}

{{- define "tranche.scheme" -}}
{{- ternary "https" "http" (eq (include "tranche.tls" .) "true") -}}
{{- end -}}

{{- define "tranche.opsScheme" -}}
{{- default (upper (include "tranche.scheme" .)) .Values.ops.scheme -}}
{{- end -}}

{{/* A pool's ops port: by TLS where the release has it. (dict "root" $ "pool" pool, all its values) */}}
{{- define "tranche.workerOpsScheme" -}}
{{- default (upper (include "tranche.scheme" .root)) .pool.ops.scheme -}}
{{- end -}}

{{/* Not the coordinators' certificate: that one is a replica. */}}
{{- define "tranche.workerOpsSecret" -}}
{{- default (printf "%s-worker-ops-tls" (include "tranche.fullname" .root)) .pool.ops.tlsSecret -}}
{{- end -}}

{{/* By what name workers are asked at their ops port: pods have no names of their own. */}}
{{- define "tranche.workerOpsName" -}}
{{ include "tranche.fullname" . }}-worker-ops.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end -}}

{{/* Of a worker or a coordinator: the rule for traces, if there are any. */}}
{{- define "tranche.otlpEgress" -}}
{{- with .Values.traces.otlpEndpoint }}
- ports:
    - port: {{ regexFind ":[0-9]+$" (trimSuffix "/" .) | trimPrefix ":" }}
  {{- with $.Values.networkPolicy.otlp.peers }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Of both, too: the CA of the collector. */}}
{{- define "tranche.otlpEnv" -}}
{{- with .Values.traces.ca }}
{{- if .secret }}
- name: OTEL_EXPORTER_OTLP_CERTIFICATE
  value: /etc/tranche/otlp/{{ .key }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "tranche.otlpMounts" -}}
{{- if .Values.traces.ca.secret }}
- name: otlp-ca
  mountPath: /etc/tranche/otlp
  readOnly: true
{{- end }}
{{- end -}}

{{- define "tranche.otlpVolumes" -}}
{{- with .Values.traces.ca }}
{{- if .secret }}
- name: otlp-ca
  secret:
    secretName: {{ .secret }}
    items: [{key: {{ .key | quote }}, path: {{ .key | quote }}}]
{{- end }}
{{- end }}
{{- end -}}

{{- define "tranche.peers" -}}
{{ include "tranche.fullname" . }}-peers
{{- end -}}

{{/* Where clients in the cluster go. */}}
{{- define "tranche.url" -}}
{{ include "tranche.scheme" . }}://{{ include "tranche.fullname" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:{{ .Values.coordinator.port }}
{{- end -}}

{{- define "tranche.etcdUrls" -}}
{{- if .Values.etcd.trial.enabled -}}
http://{{ include "tranche.fullname" . }}-etcd.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:2379
{{- else -}}
{{ join "," .Values.etcd.endpoints }}
{{- end -}}
{{- end -}}

{{- define "tranche.objectsClaim" -}}
{{- default (printf "%s-objects" (include "tranche.fullname" .)) .Values.objects.existingClaim -}}
{{- end -}}

{{/* A pool's values as YAML: the defaults, and its own over them. (dict "root" $ "name" name "pool" map)
Not mergeOverwrite, which takes an own 0, false or "" for none. */}}
{{- define "tranche.pool" -}}
{{- $all := deepCopy .root.Values.workerDefaults -}}
{{- range $key, $value := .pool -}}
{{- if and (kindIs "map" $value) (kindIs "map" (get $all $key)) -}}
{{- $inner := get $all $key -}}
{{- range $k, $v := $value -}}
{{- $_ := set $inner $k $v -}}
{{- end -}}
{{- else -}}
{{- $_ := set $all $key $value -}}
{{- end -}}
{{- end -}}
{{ toYaml $all }}
{{- end -}}

{{/* Environment by which a client finds its identity and trusts the coordinators.
(dict "root" $ "prefix" "TRANCHE_WORKER" "identity" map) */}}
{{- define "tranche.clientEnv" -}}
{{- if and (include "tranche.tls" .root) (not .root.Values.tls.ca.system) }}
- name: {{ .prefix }}_TLS_CA
  value: /etc/tranche/ca/{{ .root.Values.tls.ca.key }}
{{- end }}
{{- if .identity.certificateSecret }}
- name: {{ .prefix }}_TLS_CERT
  value: /etc/tranche/client/tls.crt
- name: {{ .prefix }}_TLS_KEY
  value: /etc/tranche/client/tls.key
{{- end }}
{{- if .identity.tokenSecret }}
- name: {{ .prefix }}_TOKEN_FILE
  value: /etc/tranche/token/{{ .identity.tokenKey }}
{{- end }}
{{- end -}}

{{- define "tranche.clientMounts" -}}
{{- if and (include "tranche.tls" .root) (not .root.Values.tls.ca.system) }}
- name: ca
  mountPath: /etc/tranche/ca
  readOnly: true
{{- end }}
{{- if .identity.certificateSecret }}
- name: client
  mountPath: /etc/tranche/client
  readOnly: true
{{- end }}
{{- if .identity.tokenSecret }}
- name: token
  mountPath: /etc/tranche/token
  readOnly: true
{{- end }}
{{- end -}}

{{/* Only the CA of the server's secret, never its key. */}}
{{- define "tranche.caVolume" -}}
{{- $ca := .Values.tls.ca -}}
{{- if and (include "tranche.tls" .) (not $ca.system) }}
- name: ca
  {{- if $ca.configMap }}
  configMap:
    name: {{ $ca.configMap }}
    items: [{key: {{ $ca.key | quote }}, path: {{ $ca.key | quote }}}]
  {{- else }}
  secret:
    secretName: {{ include "tranche.tlsSecret" . }}
    items: [{key: {{ $ca.key | quote }}, path: {{ $ca.key | quote }}}]
  {{- end }}
{{- end }}
{{- end -}}

{{- define "tranche.clientVolumes" -}}
{{- include "tranche.caVolume" .root }}
{{- if .identity.certificateSecret }}
- name: client
  secret:
    secretName: {{ .identity.certificateSecret }}
    defaultMode: 0440
{{- end }}
{{- if .identity.tokenSecret }}
- name: token
  secret:
    secretName: {{ .identity.tokenSecret }}
    defaultMode: 0440
    items: [{key: {{ .identity.tokenKey | quote }}, path: {{ .identity.tokenKey | quote }}}]
{{- end }}
{{- end -}}

{{/* The CA of those who read /metrics, where the ops port speaks TLS. */}}
{{- define "tranche.opsCaMounts" -}}
{{- if .Values.ops.clientCa.secret }}
- name: ops-client-ca
  mountPath: /etc/tranche/metrics-ca
  readOnly: true
{{- end }}
{{- end -}}

{{- define "tranche.opsCaVolumes" -}}
{{- with .Values.ops.clientCa }}
{{- if .secret }}
- name: ops-client-ca
  secret:
    secretName: {{ .secret }}
    items: [{key: {{ .key | quote }}, path: {{ .key | quote }}}]
{{- end }}
{{- end }}
{{- end -}}

{{/* What Prometheus shows there. */}}
{{- define "tranche.scraperCertificate" -}}
{{- with .Values.serviceMonitor.certificate }}
{{- if .secret }}
cert:
  secret: {name: {{ .secret }}, key: {{ .certKey | quote }}}
keySecret: {name: {{ .secret }}, key: {{ .keyKey | quote }}}
{{- end }}
{{- end }}
{{- end -}}
