//! Netlink's protocols and multicast groups, as people write them.
//!
//! Pure: text to numbers and back.
#![forbid(unsafe_code)]

use std::fmt;

/// The protocols by the names that nosh gave them, which are the kernel's
/// constants (linux/netlink.h) without NETLINK_, in its order. Where a number
/// has two names the first is its own.
const NAMES: [(&str, u32); 22] = [
    ("route", 0),
    ("usersock", 2),
    ("firewall", 3),
    ("inet-diag", 4),
    ("sock-diag", 4),
    ("nflog", 5),
    ("xfrm", 6),
    ("selinux", 7),
    ("iscsi", 8),
    ("audit", 9),
    ("fib-lookup", 10),
    ("connector", 11),
    ("netfilter", 12),
    ("ip6-fw", 13),
    ("dnrtmsg", 14),
    ("kobject-uevent", 15),
    ("generic", 16),
    ("scsitransport", 18),
    ("ecryptfs", 19),
    ("rdma", 20),
    ("crypto", 21),
    ("smc", 22),
];

/// A protocol of the netlink family. Its text is its name, the one that it was
/// given by if it has two, or its number where it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    number: u32,
    name: Option<&'static str>,
}

impl Protocol {
    /// The kernel's uevents.
    pub const KOBJECT_UEVENT: Self = Self { number: 15, name: Some("kobject-uevent") };

    /// Reads a name or a number. Whether the kernel has a protocol of that
    /// number is not known here.
    pub fn parse(text: &str) -> Option<Self> {
        let named = NAMES.iter().find(|(name, _)| *name == text);
        named.map(|&(name, number)| Self { number, name: Some(name) }).or_else(|| {
            // What socket(2) takes as a protocol is an int.
            number(text).filter(|&value| i32::try_from(value).is_ok()).map(Self::from_number)
        })
    }

    /// All names, with spaces between them.
    pub fn names() -> String {
        NAMES.map(|(name, _)| name).join(" ")
    }

    /// The protocol with this number of the kernel's.
    pub fn from_number(number: u32) -> Self {
        let named = NAMES.iter().find(|(_, value)| *value == number);
        Self { number, name: named.map(|(name, _)| *name) }
    }

    /// The kernel's number, below 2^31.
    pub fn number(self) -> u32 {
        self.number
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            Some(name) => f.write_str(name),
            None => self.number.fmt(f),
        }
    }
}

/// Multicast groups of a protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Groups {
    /// Those of the first 32 whose bits are set; group 1 is the lowest bit.
    Mask(u32),
    /// These, counted from 1; there may be more than 32 (netlink(7),
    /// NETLINK_ADD_MEMBERSHIP).
    Numbers(Vec<u32>),
}

impl Groups {
    /// Reads a bit mask in decimal, hexadecimal with `0x`, or octal with `0`;
    /// or group numbers as `group:N,N...`.
    pub fn parse(text: &str) -> Option<Self> {
        let Some(list) = text.strip_prefix("group:") else { return number(text).map(Self::Mask) };
        let group = |text| number(text).filter(|&group| group > 0);
        list.split(',').map(group).collect::<Option<_>>().map(Self::Numbers)
    }

    /// What to bind to; what is not in it is joined after that.
    pub fn mask(&self) -> u32 {
        match self {
            Self::Mask(mask) => *mask,
            Self::Numbers(_) => 0,
        }
    }

    /// The groups to join one by one.
    pub fn numbers(&self) -> &[u32] {
        match self {
            Self::Mask(_) => &[],
            Self::Numbers(numbers) => numbers,
        }
    }
}

/// Reads in an error as in "cannot bind kobject-uevent group 0x1".
impl fmt::Display for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mask(mask) => write!(f, "group {mask:#x}"),
            Self::Numbers(numbers) => {
                let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
                write!(f, "group:{}", numbers.join(","))
            }
        }
    }
}

/// Reads a number as C writes it.
fn number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    // from_str_radix would take a sign.
    if digits.chars().all(|c| c.is_digit(radix)) {
        u32::from_str_radix(digits, radix).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_the_kernels() {
        let kernel = [
            ("route", libc::NETLINK_ROUTE),
            ("usersock", libc::NETLINK_USERSOCK),
            ("firewall", libc::NETLINK_FIREWALL),
            ("inet-diag", libc::NETLINK_INET_DIAG),
            ("sock-diag", libc::NETLINK_SOCK_DIAG),
            ("nflog", libc::NETLINK_NFLOG),
            ("xfrm", libc::NETLINK_XFRM),
            ("selinux", libc::NETLINK_SELINUX),
            ("iscsi", libc::NETLINK_ISCSI),
            ("audit", libc::NETLINK_AUDIT),
            ("fib-lookup", libc::NETLINK_FIB_LOOKUP),
            ("connector", libc::NETLINK_CONNECTOR),
            ("netfilter", libc::NETLINK_NETFILTER),
            ("ip6-fw", libc::NETLINK_IP6_FW),
            ("dnrtmsg", libc::NETLINK_DNRTMSG),
            ("kobject-uevent", libc::NETLINK_KOBJECT_UEVENT),
            ("generic", libc::NETLINK_GENERIC),
            ("scsitransport", libc::NETLINK_SCSITRANSPORT),
            ("ecryptfs", libc::NETLINK_ECRYPTFS),
            ("rdma", libc::NETLINK_RDMA),
            ("crypto", libc::NETLINK_CRYPTO),
            // linux/netlink.h since 4.19; libc has it not.
            ("smc", 22),
        ];
        assert_eq!(kernel.map(|(name, _)| name).join(" "), Protocol::names());
        for (name, value) in kernel {
            let protocol = Protocol::parse(name).unwrap();
            assert_eq!(i32::try_from(protocol.number()).unwrap(), value, "{name}");
            assert_eq!(protocol.to_string(), name);
            let by_number = Protocol::parse(&value.to_string()).unwrap();
            assert_eq!(by_number.number(), protocol.number(), "{name}");
            let expected = if name == "sock-diag" { "inet-diag" } else { name };
            assert_eq!(by_number.to_string(), expected);
        }
        assert_eq!(Protocol::parse("0x0f"), Some(Protocol::KOBJECT_UEVENT));
        assert_eq!(Protocol::parse("31").unwrap().to_string(), "31");
        for wrong in ["", "Route", "kobject_uevent", "-1", "+1", "2147483648", "1 "] {
            assert_eq!(Protocol::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn groups_are_a_mask_or_numbers() {
        for (text, mask, printed) in [
            ("0", 0, "group 0x0"),
            ("1", 1, "group 0x1"),
            ("10", 10, "group 0xa"),
            ("010", 8, "group 0x8"),
            ("0x10", 16, "group 0x10"),
            ("0X1f", 31, "group 0x1f"),
            ("4294967295", u32::MAX, "group 0xffffffff"),
        ] {
            let groups = Groups::parse(text).unwrap();
            assert_eq!((groups.mask(), groups.numbers()), (mask, &[][..]), "{text}");
            assert_eq!(groups.to_string(), printed);
        }
        let groups = Groups::parse("group:33,1").unwrap();
        assert_eq!((groups.mask(), groups.numbers()), (0, &[33, 1][..]));
        assert_eq!(groups.to_string(), "group:33,1");
        for wrong in [
            "",
            "-1",
            "+1",
            "0x",
            "08",
            "4294967296",
            "0x100000000",
            "1 ",
            "group:",
            "group:0",
            "group:1,",
            "group:-1",
            "33,1",
        ] {
            assert_eq!(Groups::parse(wrong), None, "{wrong}");
        }
    }
}
