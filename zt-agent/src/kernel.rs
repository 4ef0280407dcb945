// SPDX-License-Identifier: Apache-2.0
//! kernel
mod error;
mod hooks;
mod host;
mod load;
mod sys;
pub use error::KernelError;
pub fn try_load() { 
  let pins = host::Pins::below(std::path::Path::new("/sys/fs/bpf/zt-try"));
  pins.prepare().unwrap();
  match load::Loaded::load(&pins) { Ok(_) => println!("loaded"), Err(e) => println!("{e}") }
  std::process::Command::new("bpftool").args(["prog","show"]).status().unwrap();
  println!("{:?}", pins.remove());
}
