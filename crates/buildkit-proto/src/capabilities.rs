//! The capabilities that a definition's ops need (`solver/pb/caps.go` of BuildKit).
//!
//! A client marks what its ops use; a builder that lacks one of them must refuse the definition, since an older
//! builder would not see the new field at all.

macro_rules! capabilities {
    ($($name:ident = $text:literal;)*) => {
        $(pub const $name: &str = $text;)*
        /// What [`crate::decode`] understands, and forge can therefore be asked for.
        const KNOWN: &[&str] = &[$($name),*];
    };
}

/// All of them.
pub(crate) fn all() -> &'static [&'static str] {
    KNOWN
}

capabilities! {
    SOURCE_IMAGE = "source.image";
    SOURCE_IMAGE_RESOLVE_MODE = "source.image.resolvemode";
    SOURCE_IMAGE_CHECKSUM = "source.image.checksum";
    SOURCE_IMAGE_LAYER_LIMIT = "source.image.layerlimit";
    SOURCE_LOCAL = "source.local";
    SOURCE_LOCAL_UNIQUE = "source.local.unique";
    SOURCE_LOCAL_SESSION = "source.local.sessionid";
    SOURCE_LOCAL_INCLUDE = "source.local.includepatterns";
    SOURCE_LOCAL_FOLLOW = "source.local.followpaths";
    SOURCE_LOCAL_EXCLUDE = "source.local.excludepatterns";
    SOURCE_LOCAL_SHARED_KEY_HINT = "source.local.sharedkeyhint";
    SOURCE_LOCAL_DIFFER = "source.local.differ";
    SOURCE_LOCAL_METADATA = "source.local.metadatatransfer";
    SOURCE_GIT = "source.git";
    SOURCE_GIT_KEEP_DIR = "source.git.keepgitdir";
    SOURCE_GIT_FULL_URL = "source.git.fullurl";
    SOURCE_GIT_HTTP_AUTH = "source.git.httpauth";
    SOURCE_GIT_KNOWN_HOSTS = "source.git.knownsshhosts";
    SOURCE_GIT_SSH = "source.git.mountsshsock";
    SOURCE_GIT_SUBDIR = "source.git.subdir";
    SOURCE_GIT_CHECKSUM = "source.git.checksum";
    SOURCE_GIT_SKIP_SUBMODULES = "source.git.skipsubmodules";
    SOURCE_GIT_MTIME = "source.git.mtime";
    SOURCE_GIT_FETCH_BY_COMMIT = "source.git.fetchbycommit";
    SOURCE_GIT_BUNDLE = "source.git.bundle";
    SOURCE_GIT_CHECKOUT_BUNDLE = "source.git.checkoutbundle";
    SOURCE_HTTP = "source.http";
    SOURCE_HTTP_AUTH = "source.http.auth";
    SOURCE_HTTP_CHECKSUM = "source.http.checksum";
    SOURCE_HTTP_HEADER = "source.http.header";
    SOURCE_HTTP_PERM = "source.http.perm";
    // BuildKit's own spelling.
    SOURCE_HTTP_OWNER = "soruce.http.uidgid";
    SOURCE_OCI_LAYOUT = "source.ocilayout";
    SOURCE_IMAGE_BLOB = "source.imageblob";
    EXEC_BASE = "exec.meta.base";
    EXEC_CGROUP_PARENT = "exec.meta.cgroup.parent";
    EXEC_NETWORK = "exec.meta.network";
    EXEC_PROXY = "exec.meta.proxyenv";
    EXEC_SECURITY = "exec.meta.security";
    EXEC_SECURITY_DEVICES = "exec.meta.security.devices.v1";
    EXEC_DEFAULT_PATH = "exec.meta.setsdefaultpath";
    EXEC_RESOURCES = "exec.meta.linux.resources";
    EXEC_ULIMIT = "exec.meta.ulimit";
    EXEC_CDI = "exec.meta.cdi";
    EXEC_REMOVE_STUBS = "exec.meta.removemountstubs.recursive";
    EXEC_MOUNT_BIND = "exec.mount.bind";
    EXEC_MOUNT_BIND_NO_OUTPUT = "exec.mount.bind.readwrite-nooutput";
    EXEC_MOUNT_CACHE = "exec.mount.cache";
    EXEC_MOUNT_CACHE_SHARING = "exec.mount.cache.sharing";
    EXEC_MOUNT_SELECTOR = "exec.mount.selector";
    EXEC_MOUNT_TMPFS = "exec.mount.tmpfs";
    EXEC_MOUNT_TMPFS_SIZE = "exec.mount.tmpfs.size";
    EXEC_MOUNT_SECRET = "exec.mount.secret";
    EXEC_MOUNT_SSH = "exec.mount.ssh";
    EXEC_MOUNT_CONTENT_CACHE = "exec.mount.cache.content";
    EXEC_CGROUPS_MOUNTED = "exec.cgroup";
    EXEC_SECRET_ENV = "exec.secretenv";
    EXEC_VALID_EXIT_CODES = "exec.validexitcode";
    FILE_BASE = "file.base";
    FILE_RM_WILDCARD = "file.rm.wildcard";
    FILE_RM_NO_FOLLOW = "file.rm.nofollowsymlink";
    FILE_COPY_PATTERNS = "file.copy.includeexcludepatterns";
    FILE_COPY_REQUIRED = "file.copy.requiredpaths";
    FILE_COPY_REPLACE = "file.copy.alwaysreplaceexistingdestpaths";
    FILE_COPY_MODE_TEXT = "file.copy.modestring";
    FILE_SYMLINK = "file.symlink.create";
    CONSTRAINTS = "constraints";
    PLATFORM = "platform";
    META_IGNORE_CACHE = "meta.ignorecache";
    META_DESCRIPTION = "meta.description";
    META_EXPORT_CACHE = "meta.exportcache";
    MERGE = "mergeop";
    DIFF = "diffop";
    PASSTHROUGH = "passthroughop";
}

/// Whether forge has what a definition says it needs.
pub fn is_known(name: &str) -> bool {
    KNOWN.contains(&name)
}
