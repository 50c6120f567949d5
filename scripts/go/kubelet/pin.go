//go:build pin

// Package pin keeps the requirement in go.mod.
package pin

import _ "k8s.io/kubernetes/cmd/kubelet"
