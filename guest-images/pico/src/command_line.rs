//! The kernel command line: words of `key=value`, separated by blanks.

/// A virtio-mmio device as announced by `virtio_mmio.device=<size>@<base>:<irq>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmioDevice {
    /// Physical address of its registers.
    pub base: u64,
    /// Bytes of its registers.
    pub size: u64,
    /// Its interrupt line.
    pub gsi: u32,
}

/// A parsed view of the command line.
#[derive(Clone, Copy, Debug)]
pub struct CommandLine<'a> {
    text: &'a str,
}

impl<'a> CommandLine<'a> {
    /// Looks at `text` as a command line.
    pub fn new(text: &'a str) -> Self {
        Self { text }
    }

    fn values(self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.text.split_ascii_whitespace().filter_map(move |word| {
            let (name, value) = word.split_once('=')?;
            (name == key).then_some(value)
        })
    }

    /// The value of a key; of several the last one counts.
    pub fn value(self, key: &'a str) -> Option<&'a str> {
        self.values(key).last()
    }

    /// The value of a key as a number.
    ///
    /// # Errors
    /// The value, if it isn't a decimal number that fits.
    pub fn number(self, key: &'a str) -> Result<Option<u64>, &'a str> {
        self.value(key)
            .map(|value| value.parse().map_err(|_| value))
            .transpose()
    }

    /// All virtio-mmio devices, in the order in which they are announced; malformed ones
    /// are left out.
    pub fn virtio_mmio_devices(self) -> impl Iterator<Item = VirtioMmioDevice> + 'a {
        self.values("virtio_mmio.device")
            .filter_map(parse_virtio_mmio)
    }
}

fn parse_virtio_mmio(value: &str) -> Option<VirtioMmioDevice> {
    let (size, rest) = value.split_once('@')?;
    let mut parts = rest.split(':');
    let (base, gsi) = (parts.next()?, parts.next()?);
    let device = VirtioMmioDevice {
        base: parse_size(base)?,
        size: parse_size(size)?,
        gsi: gsi.parse().ok()?,
    };
    // A fourth part is the platform id, of no use to us.
    (parts.count() <= 1 && device.size > 0).then_some(device)
}

/// A number as Linux's `memparse` reads it: decimal or 0x, and one suffix of K, M, G.
fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number = match digits.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16).ok()?,
        None => digits.parse().ok()?,
    };
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_devices_in_order() {
        let line = CommandLine::new(
            "workload=kv virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=0x200@3489665024:6:1 \
             virtio_mmio.device=rubbish virtio_mmio.device=4K@0xd0002000",
        );
        let devices: Vec<_> = line.virtio_mmio_devices().collect();
        assert_eq!(
            devices,
            [
                VirtioMmioDevice {
                    base: 0xd000_0000,
                    size: 4096,
                    gsi: 5
                },
                VirtioMmioDevice {
                    base: 0xd000_1000,
                    size: 512,
                    gsi: 6
                },
            ]
        );
    }

    #[test]
    fn the_last_value_counts() {
        let line = CommandLine::new("port=1 pages=x  port=6379\n");
        assert_eq!(line.value("port"), Some("6379"));
        assert_eq!(line.number("port"), Ok(Some(6379)));
        assert_eq!(line.number("pages"), Err("x"));
        assert_eq!(line.number("absent"), Ok(None));
    }

    #[test]
    fn sizes_do_not_overflow() {
        assert_eq!(parse_size("16G"), Some(16 << 30));
        assert_eq!(parse_size("99999999999999999G"), None);
        assert_eq!(parse_size("K"), None);
        assert_eq!(parse_size(""), None);
    }
}
