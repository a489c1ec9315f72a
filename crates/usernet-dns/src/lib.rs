//! usernet-dns
