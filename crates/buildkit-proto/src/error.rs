use forge_image::ErrorKind;
use forge_llb::GraphError;

/// Why a definition is refused.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// There is more of something than a builder should take from anybody.
    #[error("the definition has more than {limit} {what}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much is taken.
        limit: usize,
    },
    /// The bytes are not what the wire format prescribes.
    #[error("{what} cannot be read: it is not a protobuf message of that kind")]
    NotProtobuf {
        /// What was being read.
        what: String,
        /// What is wrong with it.
        source: Option<prost::DecodeError>,
    },
    /// The last entry does not say what is wanted.
    #[error("the last entry of the definition must name one result and do nothing itself")]
    NoResult,
    /// A vertex needs one that is not there.
    #[error("{vertex} needs {input}, which the definition does not have")]
    MissingInput {
        /// The vertex.
        vertex: String,
        /// What it names; cut to 100 characters.
        input: String,
    },
    /// A client says that the definition needs what forge does not have.
    #[error("{vertex} needs the capability {capability:?}, which this version of forge does not have")]
    Capability {
        /// The vertex.
        vertex: String,
        /// The capability's name.
        capability: String,
    },
    /// A vertex asks for something that forge does not do.
    #[error("{vertex}: {what} is not supported by this version of forge")]
    Unsupported {
        /// The vertex.
        vertex: String,
        /// What it asks for.
        what: String,
    },
    /// A vertex makes no sense.
    #[error("{vertex}: {what}")]
    Malformed {
        /// The vertex.
        vertex: String,
        /// What is wrong.
        what: String,
    },
    /// A vertex refers to something that is not there.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl DecodeError {
    /// Who is to blame: the maker of the definition, or forge for what it does not do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Capability { .. } | Self::Unsupported { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::UserInput,
        }
    }
}

/// What is wrong with one op, before it is said of which.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Forge does not do it.
    Unsupported(String),
    /// It makes no sense.
    Malformed(String),
}

impl Refusal {
    pub(crate) fn unsupported<T>(what: impl Into<String>) -> Result<T, Self> {
        Err(Self::Unsupported(what.into()))
    }

    pub(crate) fn malformed<T>(what: impl Into<String>) -> Result<T, Self> {
        Err(Self::Malformed(what.into()))
    }

    pub(crate) fn of(self, vertex: &str) -> DecodeError {
        let vertex = vertex.to_owned();
        match self {
            Self::Unsupported(what) => DecodeError::Unsupported { vertex, what },
            Self::Malformed(what) => DecodeError::Malformed { vertex, what },
        }
    }
}
