//! User Mode Linux machines, which have their network by vhost-user.

mod lab;
