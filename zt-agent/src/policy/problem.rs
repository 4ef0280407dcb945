// SPDX-License-Identifier: Apache-2.0
//! What is wrong with a policy document, and where: the same form as for every other file.

pub use crate::problem::Problem;
