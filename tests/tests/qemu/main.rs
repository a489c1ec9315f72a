//! Real virtual machines on the network.

mod connect;
mod lab;
mod run;
mod stream;
