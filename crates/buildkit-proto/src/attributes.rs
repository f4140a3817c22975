//! The names of source attributes (`solver/pb/attr.go` of BuildKit).

pub const IMAGE_RESOLVE_MODE: &str = "image.resolvemode";
pub const IMAGE_RECORD_TYPE: &str = "image.recordtype";
pub const IMAGE_CHECKSUM: &str = "image.checksum";
pub const IMAGE_LAYER_LIMIT: &str = "image.layerlimit";

pub const LOCAL_SESSION: &str = "local.session";
pub const LOCAL_UNIQUE: &str = "local.unique";
pub const LOCAL_INCLUDE: &str = "local.includepattern";
pub const LOCAL_FOLLOW: &str = "local.followpaths";
pub const LOCAL_EXCLUDE: &str = "local.excludepatterns";
pub const LOCAL_SHARED_KEY_HINT: &str = "local.sharedkeyhint";
pub const LOCAL_DIFFER: &str = "local.differ";
pub const LOCAL_METADATA: &str = "local.metadatatransfer";
pub const LOCAL_METADATA_EXCEPT: &str = "local.metadatatransferexclude";

pub const OCI_SESSION: &str = "oci.session";
pub const OCI_STORE: &str = "oci.store";

pub const GIT_BUNDLE: &str = "git.bundle";
pub const GIT_CHECKOUT_BUNDLE: &str = "git.checkoutbundle";
pub const GIT_KEEP_DIR: &str = "git.keepgitdir";
pub const GIT_FULL_URL: &str = "git.fullurl";
pub const GIT_AUTH_HEADER: &str = "git.authheadersecret";
pub const GIT_AUTH_TOKEN: &str = "git.authtokensecret";
pub const GIT_KNOWN_HOSTS: &str = "git.knownsshhosts";
pub const GIT_SSH: &str = "git.mountsshsock";
pub const GIT_CHECKSUM: &str = "git.checksum";
pub const GIT_SKIP_SUBMODULES: &str = "git.skipsubmodules";
pub const GIT_MTIME: &str = "git.mtime";
pub const GIT_FETCH_BY_COMMIT: &str = "git.fetchbycommit";

pub const HTTP_HEADER: &str = "http.header.";
pub const HTTP_CHECKSUM: &str = "http.checksum";
pub const HTTP_FILENAME: &str = "http.filename";
pub const HTTP_PERM: &str = "http.perm";
pub const HTTP_UID: &str = "http.uid";
pub const HTTP_GID: &str = "http.gid";
pub const HTTP_AUTH_HEADER: &str = "http.authheadersecret";
