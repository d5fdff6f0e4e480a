use super::*;

const TABLE: u64 = 0x1000;
const INDIRECT_TABLE: u64 = 0x3000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

struct Guest {
    mem: GuestMemory,
    table: Table,
}

fn guest() -> Guest {
    let ranges = [(GuestAddress(0), 0x10000), (GuestAddress(0x20000), 0x10000)];
    Guest {
        mem: GuestMemory::from_ranges(&ranges).unwrap(),
        table: Table {
            addr: GuestAddress(TABLE),
            size: 8,
            indirect: true,
        },
    }
}

impl Guest {
    fn put(&self, table: u64, index: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let descriptor = Descriptor::new(addr, len, flags, next);
        let at = GuestAddress(table + 16 * index);
        self.mem.write_obj(descriptor, at).unwrap();
    }

    fn parse(&self, head: u16) -> Result<Chain, ChainError> {
        Chain::parse(&self.mem, self.table, head)
    }
}

#[test]
fn buffers_are_used_as_one() {
    let guest = guest();
    guest.put(TABLE, 2, 0x5000, 3, NEXT, 5);
    guest.put(TABLE, 5, 0x6000, 5, NEXT, 1);
    guest.put(TABLE, 1, 0x7000, 2, NEXT | WRITE, 0);
    guest.put(TABLE, 0, 0x20000, 4, WRITE, 77);
    let chain = guest.parse(2).unwrap();
    assert_eq!(
        (chain.head, chain.readable.len(), chain.writable.len()),
        (2, 8, 6)
    );

    let mem = &guest.mem;
    mem.write_slice(b"abc", GuestAddress(0x5000)).unwrap();
    mem.write_slice(b"defgh", GuestAddress(0x6000)).unwrap();
    let mut all = [0; 8];
    assert!(chain.readable.read(mem, 0, &mut all));
    assert_eq!(&all, b"abcdefgh");
    let mut part = [0; 4];
    assert!(chain.readable.read(mem, 2, &mut part));
    assert_eq!(&part, b"cdef");
    assert!(!chain.readable.read(mem, 5, &mut part), "past the end");
    assert!(chain.readable.read(mem, 8, &mut []));

    assert!(chain.writable.write(mem, 1, b"1234"));
    let mut first = [0; 3];
    mem.read_slice(&mut first, GuestAddress(0x7000)).unwrap();
    assert_eq!(first, [0, b'1', 0]);
    let mut second = [0; 5];
    mem.read_slice(&mut second, GuestAddress(0x20000)).unwrap();
    assert_eq!(&second, b"234\0\0");
    assert!(!chain.writable.write(mem, 3, b"xxxx"), "past the end");
}

#[test]
fn indirect_tables_are_followed_once() {
    let mut guest = guest();
    guest.put(TABLE, 0, 0x5000, 1, NEXT, 1);
    guest.put(TABLE, 1, INDIRECT_TABLE, 32, INDIRECT, 0);
    guest.put(INDIRECT_TABLE, 0, 0x6000, 2, NEXT, 1);
    guest.put(INDIRECT_TABLE, 1, 0x7000, 4, WRITE, 0);
    let chain = guest.parse(0).unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (3, 4));

    guest.table.indirect = false;
    assert_eq!(guest.parse(0), Err(ChainError::Indirect));
    guest.table.indirect = true;
    // A table within a table.
    guest.put(INDIRECT_TABLE, 1, INDIRECT_TABLE, 32, INDIRECT, 0);
    assert_eq!(guest.parse(0), Err(ChainError::Indirect));
    // Of a bad size, empty, longer than the queue, or not the last descriptor.
    for (bytes, flags) in [(31, 0), (0, 0), (16 * 9, 0), (32, NEXT)] {
        guest.put(TABLE, 1, INDIRECT_TABLE, bytes, INDIRECT | flags, 0);
        assert_eq!(guest.parse(0), Err(ChainError::Indirect), "{bytes} {flags}");
    }
    // Not in memory.
    guest.put(TABLE, 1, 0x1_0000, 32, INDIRECT, 0);
    assert_eq!(guest.parse(0), Err(ChainError::Memory));
    guest.put(TABLE, 1, u64::MAX - 7, 32, INDIRECT, 0);
    assert_eq!(guest.parse(0), Err(ChainError::Memory));
}

#[test]
fn malformed_chains_are_refused() {
    let guest = guest();
    assert_eq!(guest.parse(8), Err(ChainError::Index));
    guest.put(TABLE, 0, 0x5000, 1, NEXT, 8);
    assert_eq!(guest.parse(0), Err(ChainError::Index));
    // A loop.
    guest.put(TABLE, 0, 0x5000, 1, NEXT, 1);
    guest.put(TABLE, 1, 0x5000, 1, NEXT, 0);
    assert_eq!(guest.parse(0), Err(ChainError::TooLong));
    // Readable after writable.
    guest.put(TABLE, 0, 0x5000, 1, NEXT | WRITE, 1);
    guest.put(TABLE, 1, 0x5000, 1, 0, 0);
    assert_eq!(guest.parse(0), Err(ChainError::Order));
    // Buffers in the hole, across its edge, and past the end of everything.
    for addr in [0x1_8000, 0xffff, 0x1_ffff, 0x2_ffff, u64::MAX] {
        guest.put(TABLE, 0, addr, 2, 0, 0);
        assert_eq!(guest.parse(0), Err(ChainError::Memory), "{addr:#x}");
    }
    guest.put(TABLE, 0, 0x5000, u32::MAX, 0, 0);
    assert_eq!(guest.parse(0), Err(ChainError::Memory));
}

#[test]
fn written_buffers_are_in_the_dirty_bitmap() {
    use vm_memory::GuestMemoryBackend;
    use vm_memory::bitmap::Bitmap;
    let guest = guest();
    guest.put(TABLE, 0, 0x6ffe, 4, WRITE, 0);
    let chain = guest.parse(0).unwrap();
    let region = guest.mem.iter().next().unwrap();
    let dirty = |page: usize| vm_memory::GuestMemoryRegion::bitmap(region).dirty_at(page << 12);
    assert!(!dirty(6) && !dirty(7));
    assert!(chain.writable.write(&guest.mem, 0, b"abcd"));
    assert!(dirty(6) && dirty(7) && !dirty(8));
}
