// SPDX-License-Identifier: Apache-2.0
//! libFuzzer's way to the target `spiffe_id`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| zt_fuzz::give("spiffe_id", bytes));
