//! usernet-cli
fn main() {}
