{{/* What the schema can't say, or can't say well: everything that is wrong, at once. */}}
{{- define "tranche.check" -}}
{{- $v := .Values -}}
{{- $wrong := list -}}
{{- $tls := eq (include "tranche.tls" .) "true" -}}
{{- if not (or $v.etcd.endpoints $v.etcd.trial.enabled) -}}
{{- $wrong = append $wrong "etcd.endpoints: batches are kept in etcd: give the URLs of its members, or etcd.trial.enabled=true for a trial" -}}
{{- end -}}
{{- if and $v.etcd.endpoints $v.etcd.trial.enabled -}}
{{- $wrong = append $wrong "etcd.trial.enabled: there are etcd.endpoints, too: give one of them" -}}
{{- end -}}
{{- range $v.etcd.endpoints -}}
{{- if and $v.etcd.tls.existingSecret (hasPrefix "http://" .) -}}
{{- $wrong = append $wrong (printf "etcd.endpoints: %s is in clear text, but etcd.tls.existingSecret is given: write https://" .) -}}
{{- end -}}
{{- if and (hasPrefix "https://" .) (not $v.etcd.tls.existingSecret) -}}
{{- $wrong = append $wrong (printf "etcd.tls.existingSecret: %s needs a secret with etcd's CA" .) -}}
{{- end -}}
{{- if and (hasPrefix "http://" .) (not $v.insecure) -}}
{{- $wrong = append $wrong (printf "etcd.endpoints: %s is in clear text: write https://, or set insecure=true in a cluster that you trust" .) -}}
{{- end -}}
{{- end -}}
{{- if and $v.etcd.trial.enabled (not $v.insecure) -}}
{{- $wrong = append $wrong "etcd.trial.enabled: the trial's etcd speaks clear text: set insecure=true, or give etcd.endpoints" -}}
{{- end -}}
{{- if ne (empty $v.etcd.tls.certKey) (empty $v.etcd.tls.keyKey) -}}
{{- $wrong = append $wrong "etcd.tls: give both certKey and keyKey, or none" -}}
{{- end -}}
{{- if ne (empty $v.etcd.auth.user) (empty $v.etcd.auth.existingSecret) -}}
{{- $wrong = append $wrong "etcd.auth: give both user and existingSecret, or none" -}}
{{- end -}}
{{- $objects := list -}}
{{- if $v.objects.existingClaim }}{{ $objects = append $objects "existingClaim" }}{{ end -}}
{{- if $v.objects.claim.enabled }}{{ $objects = append $objects "claim.enabled" }}{{ end -}}
{{- if $v.objects.emptyDir }}{{ $objects = append $objects "emptyDir" }}{{ end -}}
{{- if ne (len $objects) 1 -}}
{{- $wrong = append $wrong (printf "objects: give exactly one of existingClaim, claim.enabled=true and emptyDir=true, not %d (%s): all coordinators share this directory" (len $objects) (join ", " $objects)) -}}
{{- end -}}
{{- if and $v.objects.existingClaim (gt (int $v.coordinator.replicas) 1) -}}
{{- $claim := lookup "v1" "PersistentVolumeClaim" .Release.Namespace $v.objects.existingClaim -}}
{{- if and $claim (not (has "ReadWriteMany" $claim.spec.accessModes)) -}}
{{- $wrong = append $wrong (printf "objects.existingClaim: %s is %s, and %d coordinators write to it: it must be ReadWriteMany" $v.objects.existingClaim (join ", " $claim.spec.accessModes) (int $v.coordinator.replicas)) -}}
{{- end -}}
{{- end -}}
{{- if not $v.insecure -}}
{{- if not $tls -}}
{{- $wrong = append $wrong "tls: give tls.existingSecret or tls.certManager, or set insecure=true in a cluster that you trust" -}}
{{- end -}}
{{- if not $v.identities.existingSecret -}}
{{- $wrong = append $wrong "identities.existingSecret: say who may do what, or set insecure=true in a cluster that you trust" -}}
{{- end -}}
{{- end -}}
{{- if and $v.tls.existingSecret $v.tls.certManager.enabled -}}
{{- $wrong = append $wrong "tls: give existingSecret or certManager.enabled=true, not both" -}}
{{- end -}}
{{- if and $v.tls.certManager.enabled (not $v.tls.certManager.issuerRef.name) -}}
{{- $wrong = append $wrong "tls.certManager.issuerRef.name: name the issuer" -}}
{{- end -}}
{{- if and $v.tls.clientCa.secret (not $tls) -}}
{{- $wrong = append $wrong "tls.clientCa.secret: client certificates need tls.existingSecret or tls.certManager" -}}
{{- end -}}
{{- if and $v.ops.clientCa.secret (not $tls) -}}
{{- $wrong = append $wrong "ops.clientCa.secret: client certificates need tls.existingSecret or tls.certManager" -}}
{{- end -}}
{{- if and $v.ops.clientCa.secret $v.serviceMonitor.enabled (not $v.serviceMonitor.certificate.secret) -}}
{{- $wrong = append $wrong "serviceMonitor.certificate.secret: with ops.clientCa /metrics answers to client certificates alone: name Prometheus' own" -}}
{{- end -}}
{{- if and $tls (not $v.ops.enabled) -}}
{{- $wrong = append $wrong "ops.enabled: must be true with TLS: the kubelet's gRPC probes can't speak TLS, so they use the ops port" -}}
{{- end -}}
{{- if and (not $v.ops.enabled) (hasKey $v.coordinator.config "open_services") (not (has "health" $v.coordinator.config.open_services)) -}}
{{- $wrong = append $wrong "coordinator.config.open_services: must have health when ops.enabled is false: the kubelet's gRPC probes have no credential" -}}
{{- end -}}
{{- if and $v.ops.enabled (eq (int $v.ops.port) (int $v.coordinator.port)) -}}
{{- $wrong = append $wrong (printf "ops.port: %d is the gRPC port, too" (int $v.ops.port)) -}}
{{- end -}}
{{- if and $v.serviceMonitor.enabled (not $v.ops.enabled) -}}
{{- $wrong = append $wrong "serviceMonitor.enabled: there is nothing to scrape without ops.enabled=true" -}}
{{- end -}}
{{- if and $v.traces.ca.secret (not (hasPrefix "https://" $v.traces.otlpEndpoint)) -}}
{{- $wrong = append $wrong "traces.ca.secret: a CA is for a collector at https://: write traces.otlpEndpoint so" -}}
{{- end -}}
{{- $who := dict "coordinator.token" (dict "tokenSecret" $v.coordinator.token.secret "certificateSecret" "") -}}
{{- if $v.tests.enabled }}{{ $_ := set $who "tests.identity" $v.tests.identity }}{{ end -}}
{{- $handlers := list -}}
{{- range $name, $own := $v.workerPools -}}
{{- $at := printf "workerPools.%s" $name -}}
{{- $pool := include "tranche.pool" (dict "root" $ "pool" $own) | fromYaml -}}
{{- $_ := set $who (printf "%s.identity" $at) $pool.identity -}}
{{- $handlers = concat $handlers $pool.handlers | uniq -}}
{{- if not $pool.handlers -}}
{{- $wrong = append $wrong (printf "%s.handlers: name at least one, as [object]" $at) -}}
{{- end -}}
{{- $opsTls := eq (include "tranche.workerOpsScheme" (dict "root" $ "pool" $pool)) "HTTPS" -}}
{{- if and $pool.ops.enabled $opsTls (not $pool.ops.tlsSecret) (not $v.tls.certManager.enabled) -}}
{{- $wrong = append $wrong (printf "%s.ops.tlsSecret: without cert-manager name a secret with tls.crt and tls.key for %s; or say ops.scheme=HTTP, clear text" $at (include "tranche.workerOpsName" $ | trim)) -}}
{{- end -}}
{{- if has "object" $pool.handlers -}}
{{- if and (not $pool.allowRoots) (not $pool.command) -}}
{{- $wrong = append $wrong (printf "%s.allowRoots: the handler object needs the folders that it may touch" $at) -}}
{{- end -}}
{{- end -}}
{{- range $root := $pool.allowRoots -}}
{{- $mounted := false -}}
{{- range $pool.volumeMounts -}}
{{- if or (eq .mountPath $root) (hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) $root) }}{{ $mounted = true }}{{ end -}}
{{- end -}}
{{- if not $mounted -}}
{{- $wrong = append $wrong (printf "%s.allowRoots: %s is in none of its volumeMounts: mount the library's volume there" $at $root) -}}
{{- end -}}
{{- end -}}
{{- $volumes := list -}}
{{- range $pool.volumes }}{{ $volumes = append $volumes .name }}{{ end -}}
{{- range $pool.volumeMounts -}}
{{- if not (has .name $volumes) -}}
{{- $wrong = append $wrong (printf "%s.volumeMounts: there is no volume %s in its volumes" $at .name) -}}
{{- end -}}
{{- end -}}
{{- $scale := $pool.autoscaling -}}
{{- if ne $scale.kind "none" -}}
{{- if gt (int $scale.minReplicas) (int $scale.maxReplicas) -}}
{{- $wrong = append $wrong (printf "%s.autoscaling: minReplicas %d is more than maxReplicas %d" $at (int $scale.minReplicas) (int $scale.maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $scale.kind "hpa") (lt (int $scale.minReplicas) 1) -}}
{{- $wrong = append $wrong (printf "%s.autoscaling.minReplicas: an hpa can't go below 1; keda can" $at) -}}
{{- end -}}
{{- if and (eq $scale.kind "keda") (not $scale.prometheusUrl) -}}
{{- $wrong = append $wrong (printf "%s.autoscaling.prometheusUrl: keda asks Prometheus: where is it?" $at) -}}
{{- end -}}
{{- end -}}
{{- if gt (len $handlers) 64 -}}
{{- $wrong = append $wrong (printf "workerPools: %d handlers; a coordinator knows 64 at most" (len $handlers)) -}}
{{- end -}}
{{- range $at, $identity := $who -}}
{{- if and $identity.tokenSecret $identity.certificateSecret -}}
{{- $wrong = append $wrong (printf "%s: give tokenSecret or certificateSecret, not both" $at) -}}
{{- end -}}
{{- if and $identity.certificateSecret (not $v.tls.clientCa.secret) -}}
{{- $wrong = append $wrong (printf "%s.certificateSecret: certificates are asked for only with tls.clientCa.secret" $at) -}}
{{- end -}}
{{- if and $v.identities.existingSecret (not $identity.tokenSecret) (not $identity.certificateSecret) (not (and (eq $at "coordinator.token") $v.tls.clientCa.secret)) -}}
{{- $wrong = append $wrong (printf "%s: with identities it must say who it is: give a secret" $at) -}}
{{- end -}}
{{- end -}}
{{- if $wrong -}}
{{- fail (printf "\n\n%d of the values can't be:\n  - %s\n" (len $wrong) (join "\n  - " $wrong)) -}}
{{- end -}}
{{- end -}}
