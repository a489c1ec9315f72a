//! usernet-testkit
