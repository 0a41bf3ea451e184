{{- /* Puts the values into the pod template of the DaemonSet: (dict "pod" SPEC "root" $). Renders nothing. */ -}}
{{- define "sidestep.daemons" }}
{{- $values := .root.Values }}
{{- $container := first .pod.containers }}
{{- $image := $values.image }}
{{- $version := printf ":%s" ($image.tag | default .root.Chart.AppVersion) }}
{{- if $image.digest }}
{{- $version = printf "@%s" $image.digest }}
{{- end }}
{{- $_ := set $container "image" (printf "%s%s" $image.repository $version) }}
{{- $_ := set $container "imagePullPolicy" $image.pullPolicy }}
{{- $_ := set $container "resources" $values.resources }}
{{- $_ := set $container "env" (concat $container.env $values.env) }}
{{- $_ := set .pod "tolerations" $values.tolerations }}
{{- $_ := set .pod "nodeSelector" $values.nodeSelector }}
{{- if $values.linux510 }}
{{- $capabilities := $container.securityContext.capabilities }}
{{- $_ := set $capabilities "add" (append $capabilities.add "SYS_RESOURCE") }}
{{- end }}
{{- $secrets := list }}
{{- range $name := $image.pullSecrets }}
{{- $secrets = append $secrets (dict "name" $name) }}
{{- end }}
{{- if $secrets }}
{{- $_ := set .pod "imagePullSecrets" $secrets }}
{{- end }}
{{- end }}
