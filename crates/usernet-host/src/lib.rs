//! usernet-host
