//! The host's error numbers in the words of the core: the one place where they are translated.

use rustix::io::Errno;
use usernet_core::host::HostError;

pub(crate) fn host_error(errno: Errno) -> HostError {
    match errno {
        Errno::CONNREFUSED => HostError::Refused,
        Errno::CONNRESET | Errno::CONNABORTED | Errno::PIPE => HostError::Reset,
        Errno::NETUNREACH | Errno::NETDOWN | Errno::NODEV => HostError::NetUnreachable,
        Errno::HOSTUNREACH | Errno::HOSTDOWN | Errno::NONET => HostError::HostUnreachable,
        Errno::ACCESS | Errno::PERM => HostError::Prohibited,
        Errno::MSGSIZE => HostError::TooLong,
        Errno::TIMEDOUT => HostError::TimedOut,
        Errno::MFILE | Errno::NFILE | Errno::ADDRNOTAVAIL | Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM => {
            HostError::Exhausted
        }
        other => HostError::Other(other.raw_os_error()),
    }
}
