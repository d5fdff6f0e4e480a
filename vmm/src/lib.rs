//! Evertwin's virtual machine monitor: machine, boot, vCPUs, checkpoints and the command line.
