#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| usernet_fuzz::vhost_messages(data));
