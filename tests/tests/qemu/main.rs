//! Real virtual machines on the network.

mod connect;
mod lab;
mod restrict;
mod run;
mod stream;
mod vhost_user;
