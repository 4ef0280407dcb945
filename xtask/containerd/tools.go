// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package tools keeps in go.mod what is built from this module: `go mod tidy` would remove what nothing imports.
package tools

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
	_ "github.com/containerd/containerd/v2/cmd/ctr"
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
)
