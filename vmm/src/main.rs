//! The `evertwin` command.
fn main() {}
