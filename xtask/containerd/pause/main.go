// SPDX-License-Identifier: Apache-2.0

// Pause is all that is in the image of the tests: it waits until it is killed.
package main

import "syscall"

func main() {
	for {
		_ = syscall.Pause()
	}
}
