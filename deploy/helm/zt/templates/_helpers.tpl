{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}

{{- define "zt.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "zt.labels" -}}
app.kubernetes.io/name: zt
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{- define "zt.selector" -}}
app.kubernetes.io/name: zt
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- /* The SPIFFE ID of a service account in a namespace: `spiffeIDTemplate`, filled in. */ -}}
{{- define "zt.id" -}}
{{- $values := .root.Values -}}
{{- $values.spiffeIDTemplate | replace "{trustDomain}" $values.trustDomain | replace "{cluster}" $values.cluster | replace "{namespace}" .namespace | replace "{serviceAccount}" .account -}}
{{- end }}

{{- /* That of the agents, which is on SPIRE's list of delegates. */ -}}
{{- define "zt.agent.id" -}}
{{- include "zt.id" (dict "root" . "namespace" .Release.Namespace "account" "zt-agent") -}}
{{- end }}

{{- /* The sources of identities that the agent is configured with, as a list in JSON. */ -}}
{{- define "zt.sources" -}}
{{- $source := (.Values.agent.config.identity | default dict).source | default "file" -}}
{{- ternary $source (list $source) (kindIs "slice" $source) | toJson -}}
{{- end }}

{{- /* What stays in observe, under the layout that is chosen and under the two that are common. */ -}}
{{- define "zt.modes" -}}
{{- range .Values.modes }}
- {{ toJson . }}
{{- end }}
{{- $domain := printf "spiffe://%s" .Values.trustDomain -}}
{{- range append .Values.observeNamespaces .Release.Namespace | uniq }}
{{- range list (include "zt.id" (dict "root" $ "namespace" . "account" "*")) (printf "%s/%s/%s/*" $domain $.Values.cluster .) (printf "%s/ns/%s/sa/*" $domain .) | uniq }}
- {spiffe: {{ quote . }}, mode: observe}
{{- end }}
{{- end }}
{{- end }}

{{- /* Who may come to the API: operators, and for engines the agents that follow, before what the configuration says. */ -}}
{{- define "zt.callers" -}}
{{- $root := .root -}}
{{- $callers := list -}}
{{- range $root.Values.operators -}}
{{- $who := . -}}
{{- if not (hasPrefix "spiffe://" .) -}}
{{- $who = include "zt.id" (dict "root" $root "namespace" (dir .) "account" (base .)) -}}
{{- end -}}
{{- $callers = append $callers (dict "spiffe" $who "role" "admin") -}}
{{- end -}}
{{- if .followers -}}
{{- $agent := include "zt.agent.id" $root -}}
{{- $callers = concat $callers (list (dict "spiffe" $agent "role" "follow") (dict "spiffe" (printf "%s/nodes/*" $agent) "role" "follow")) -}}
{{- end -}}
{{- concat $callers (.api.callers | default list) | toJson -}}
{{- end }}

{{- /* What both configurations have in common. */ -}}
{{- define "zt.config" -}}
{{- $spire := dict "spireSocket" (printf "%s/%s" .Values.spire.socketDirectory .Values.spire.socket) "spireAdminSocket" (printf "%s/%s" .Values.spire.adminDirectory .Values.spire.adminSocket) "template" .Values.spiffeIDTemplate -}}
{{- $own := dict "cluster" .Values.cluster "trustDomain" .Values.trustDomain "identity" $spire "modes" (include "zt.modes" . | fromYamlArray) -}}
{{- toJson $own -}}
{{- end }}

{{- /* The capabilities of the agent. A test runs the agent with these and no others, and without each of them. */ -}}
{{- define "zt.agent.securityContext" -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsUser: 0
runAsGroup: 0
capabilities:
  drop: [ALL]
  add:
    # Load programs, make maps, attach to cgroups.
    - BPF
    # Attach network hooks, destroy the sockets that policy revokes.
    - NET_ADMIN
    # Reset the peer of a refused connection at once.
    - NET_RAW
    # Enter the network namespaces of workloads.
    - SYS_ADMIN
    # Find the namespaces and sockets of other users' processes.
    - SYS_PTRACE
    # Read cgroups, pins and /proc whoever owns them.
    - DAC_READ_SEARCH
    # What policy revokes goes before other work for some milliseconds.
    - SYS_NICE
seccompProfile: {type: RuntimeDefault}
# The runtimes' profile of AppArmor forbids bpffs and other processes' namespaces; SELinux' container_t forbids bpf().
appArmorProfile: {type: Unconfined}
seLinuxOptions: {type: spc_t}
{{- end }}
