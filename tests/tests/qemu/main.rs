//! Real virtual machines on the network, by QEMU's `-netdev stream`.

mod lab;
