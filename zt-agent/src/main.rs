fn main() { zt_agent::kernel::try_load() }
