//! Options whose values are words.

use crate::kind::{FromValue, Value};

macro_rules! choices {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident {
            $( $(#[doc = $word_doc:literal])+ $variant:ident = $word:literal, )+
        }
    )+) => {
        $(
            $(#[doc = $doc])+
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub enum $name {
                $( $(#[doc = $word_doc])+ $variant, )+
            }

            impl $name {
                /// The words of all values.
                pub const WORDS: &'static [&'static str] = &[$($word),+];

                /// The word of this value.
                pub fn word(self) -> &'static str {
                    match self {
                        $( Self::$variant => $word, )+
                    }
                }
            }

            impl FromValue for $name {
                fn from_value(value: &Value) -> Option<Self> {
                    match value {
                        $( Value::Choice($word) => Some(Self::$variant), )+
                        _ => None,
                    }
                }
            }
        )+
    };
}

choices! {
    /// Which of the operating system's interfaces a shard runs on.
    RuntimeBackend {
        /// `uring` where the kernel allows it, otherwise `epoll`.
        Auto = "auto",
        /// One io_uring for each shard.
        Uring = "uring",
        /// Readiness by `ppoll`, and a flush thread for each shard.
        Epoll = "epoll",
        /// glommio's executor for each shard, where the executable was built with it.
        Glommio = "glommio",
    }

    /// What a shard does when it has nothing to do.
    Poll {
        /// It looks for news as long as that has paid off lately, then sleeps.
        Adaptive = "adaptive",
        /// It sleeps at once.
        Sleep = "sleep",
        /// It looks for news and never sleeps.
        Busy = "busy",
    }

    /// Which network lies between a broker and its clients: how large its datagrams may get.
    MtuProfile {
        /// Any: from 1,200 bytes up to 1,452, an Ethernet frame.
        Internet = "internet",
        /// One with short ways, where Ethernet frames pass: up to 8,952 bytes, a jumbo frame.
        Datacentre = "datacentre",
        /// The same host: up to 65,507 bytes, the largest datagram that there is.
        Loopback = "loopback",
    }

    /// When records reach stable storage.
    FlushPolicy {
        /// Before they are acknowledged.
        Always = "always",
        /// At the latest so many milliseconds after they are acknowledged.
        Interval = "interval",
    }

    /// How io_uring makes a block durable.
    FlushPlan {
        /// One write through the device's cache where each shard has a core of its own, otherwise a
        /// write and a linked flush.
        Auto = "auto",
        /// A write and a linked flush.
        WriteFlush = "write_flush",
        /// One write through the device's cache.
        WriteThrough = "write_through",
    }

    /// What a full WAL does.
    WhenFull {
        /// Produce is refused until retention or a deletion makes room; reads go on.
        Refuse = "refuse",
        /// The oldest records go before their retention ends.
        DeleteOldest = "delete_oldest",
    }

    /// The least severe messages that are logged.
    LogLevel {
        /// Something is broken.
        Error = "error",
        /// Something needs a look.
        Warn = "warn",
        /// What an operator wants to know.
        Info = "info",
        /// What a developer wants to know.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }

    /// The shape of a log line.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object for each line.
        Json = "json",
    }
}
