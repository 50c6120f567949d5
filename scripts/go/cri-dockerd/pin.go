//go:build pin

// Package pin keeps the requirement in go.mod.
package pin

import _ "github.com/Mirantis/cri-dockerd"
