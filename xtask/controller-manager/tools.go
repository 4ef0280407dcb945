// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package tools keeps in go.mod what is built from this module: `go mod tidy` would remove what nothing imports.
package tools

import _ "github.com/spiffe/spire-controller-manager/cmd"
