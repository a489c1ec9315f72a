//! Guests behind vhost-user: their stack is smoltcp, their driver is the testkit's, and their front end is
//! that of the `vhost` crate.

mod guest;
mod hostile;
mod raw;
mod transfers;
