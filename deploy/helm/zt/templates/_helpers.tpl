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

{{- /* The sources of identities that the agent is configured with, as a list in JSON. */ -}}
{{- define "zt.sources" -}}
{{- $source := (.Values.agent.config.identity | default dict).source | default "file" -}}
{{- ternary $source (list $source) (kindIs "slice" $source) | toJson -}}
{{- end }}

{{- define "zt.modes" -}}
{{- range .Values.modes }}
- {{ toJson . }}
{{- end }}
{{- range append .Values.observeNamespaces .Release.Namespace | uniq }}
- {spiffe: "spiffe://{{ $.Values.trustDomain }}/{{ $.Values.cluster }}/{{ . }}/*", mode: observe}
- {spiffe: "spiffe://{{ $.Values.trustDomain }}/ns/{{ . }}/sa/*", mode: observe}
{{- end }}
{{- end }}

{{- /* Who may come to the API: operators, and for engines the agents that follow, before what the configuration says. */ -}}
{{- define "zt.callers" -}}
{{- $here := printf "spiffe://%s/%s/" .root.Values.trustDomain .root.Values.cluster -}}
{{- $callers := list -}}
{{- range .root.Values.operators }}{{ $callers = append $callers (dict "spiffe" (print $here .) "role" "admin") }}{{ end -}}
{{- if .followers -}}
{{- $callers = append $callers (dict "spiffe" (printf "%s%s/zt-agent" $here .root.Release.Namespace) "role" "follow") -}}
{{- end -}}
{{- concat $callers (.api.callers | default list) | toJson -}}
{{- end }}

{{- /* What both configurations have in common. */ -}}
{{- define "zt.config" -}}
{{- $spire := dict "spireSocket" (printf "%s/%s" .Values.spire.socketDirectory .Values.spire.socket) "spireAdminSocket" (printf "%s/%s" .Values.spire.adminDirectory .Values.spire.adminSocket) -}}
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
