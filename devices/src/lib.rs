//! Virtio devices, serial port, address bus and the output gate.
