#![no_main]

use std::sync::Arc;

libfuzzer_sys::fuzz_target!(
    init: {
        // A Rust program ignores this by itself, but the fuzzer's own entry is none: pipes may be closed.
        signal_hook::flag::register(signal_hook::consts::SIGPIPE, Arc::default()).unwrap();
    },
    |data: &[u8]| usernet_fuzz::vhost_messages(data)
);
