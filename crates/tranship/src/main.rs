//! tranship
fn main() {}
