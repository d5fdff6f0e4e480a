//! End-to-end test harness: hosts in network namespaces, clients and judges.
