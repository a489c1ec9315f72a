//! Real programs in namespaces.
