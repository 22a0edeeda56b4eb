//! What prices cost.
fn main() {}
