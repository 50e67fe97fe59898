//! What a test holds in its hands: a client, its sessions, their tree connects, and opens.
//!
//! Nothing is undone by dropping a handle: an open, tree connect or session ends by its own request, or with
//! the TCP connection, as it does on a real client.

use std::{net::SocketAddr, time::Duration};

use super::{
    connection::{Breaks, Connection, malformed},
    error::{NtStatus, SmbError},
    ntlm::NtlmExchange,
    types::{
        ClientGuid, Command, CreateRequest, CreateResponse, Durability, FileId, LeaseKey, LeaseState,
        LockElement, LockSequence, OplockLevel,
    },
    wire,
};

/// Long enough for a conflicting open to wait for a break that nobody acknowledges (35 s), and then some.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(45);

/// Who logs in.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The user's name, without a domain.
    pub user: String,
    /// The password.
    pub password: String,
}

impl Credentials {
    /// Both of them.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { user: user.into(), password: password.into() }
    }
}

/// One client machine: an identity that outlives its connections.
#[derive(Clone, Debug)]
pub struct Client {
    /// Who the machine is. The same on every connection, as on a real client.
    pub client_guid: ClientGuid,
    /// Who logs in.
    pub credentials: Credentials,
    /// How long any single request, and the making of a connection, may take.
    pub request_timeout: Duration,
}

impl Client {
    /// A machine with a fresh ClientGuid.
    pub fn new(credentials: Credentials) -> Self {
        Self { client_guid: ClientGuid::random(), credentials, request_timeout: REQUEST_TIMEOUT }
    }

    /// Connects and logs in.
    pub async fn connect(&self, server: SocketAddr) -> Result<Session, SmbError> {
        self.reconnect(server, 0).await
    }

    /// Connects and logs in in place of an earlier session, which the server is asked to end if it still has
    /// it (MS-SMB2 3.3.5.5.3). Zero is no session.
    pub async fn reconnect(&self, server: SocketAddr, previous_session_id: u64) -> Result<Session, SmbError> {
        let connection = Connection::open(server, self.request_timeout).await?;
        self.negotiate(&connection).await?;
        let session_id = self.session_setup(&connection, previous_session_id).await?;
        Ok(Session { connection, session_id })
    }

    /// MS-SMB2 3.2.5.2.
    async fn negotiate(&self, connection: &Connection) -> Result<(), SmbError> {
        let server = connection.server();
        let response = connection.call_ok(wire::negotiate(self.client_guid)).await?;
        let negotiated = wire::Negotiated::decode(&response).map_err(malformed(Command::Negotiate))?;
        if negotiated.dialect != wire::DIALECT {
            return Err(SmbError::Dialect { server, dialect: negotiated.dialect });
        }
        if negotiated.signing_required {
            return Err(SmbError::SigningRequired { server });
        }
        Ok(())
    }

    /// MS-SMB2 3.2.5.3: NTLM takes exactly two round trips.
    async fn session_setup(
        &self,
        connection: &Connection,
        previous_session_id: u64,
    ) -> Result<u64, SmbError> {
        let refused = |status| SmbError::Refused { command: Command::SessionSetup, status };
        let mut ntlm = NtlmExchange::new(&self.credentials)?;

        let negotiate = ntlm.step(&[])?;
        let response = connection.call(wire::session_setup(0, previous_session_id, &negotiate)).await?;
        if response.status() != NtStatus::MORE_PROCESSING_REQUIRED {
            return Err(refused(response.status()));
        }
        let session_id = response.session_id();
        let challenge = wire::session_setup_token(&response).map_err(malformed(Command::SessionSetup))?;

        let authenticate = ntlm.step(challenge)?;
        connection.call_ok(wire::session_setup(session_id, previous_session_id, &authenticate)).await?;
        Ok(session_id)
    }
}

/// An authenticated session, alone on its TCP connection.
#[derive(Clone, Debug)]
pub struct Session {
    connection: Connection,
    session_id: u64,
}

impl Session {
    /// SessionId, to be named as the previous session in [`Client::reconnect`].
    pub fn id(&self) -> u64 {
        self.session_id
    }

    /// The server's address.
    pub fn server(&self) -> SocketAddr {
        self.connection.server()
    }

    /// The address of this end of the TCP connection.
    pub fn client_address(&self) -> SocketAddr {
        self.connection.client()
    }

    /// Enters a share: `\\server\share`.
    pub async fn tree_connect(&self, share: &str) -> Result<Tree, SmbError> {
        let response = self.connection.call_ok(wire::tree_connect(self.session_id, share)).await?;
        Ok(Tree { session: self.clone(), tree_id: response.tree_id() })
    }

    /// Asks whether the server is there.
    pub async fn echo(&self) -> Result<(), SmbError> {
        self.connection.call_ok(wire::echo()).await.map(drop)
    }

    /// Ends the session. Its durable opens stay and may be reclaimed.
    pub async fn logoff(&self) -> Result<(), SmbError> {
        self.connection.call_ok(wire::logoff(self.session_id)).await.map(drop)
    }

    /// The break notifications that arrive from now on.
    pub fn breaks(&self) -> Breaks {
        self.connection.breaks()
    }

    /// Closes the TCP connection without a word, as a network that breaks does. Requests under way fail.
    pub async fn drop_connection(&self) {
        self.connection.drop_now().await;
    }

    /// Waits until the TCP connection has ended, and says who ended it and why.
    pub async fn ended(&self) -> String {
        self.connection.ended().await
    }
}

/// A tree connect.
#[derive(Clone, Debug)]
pub struct Tree {
    session: Session,
    tree_id: u32,
}

impl Tree {
    /// The session it belongs to.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Opens, creates or reconnects to a file.
    pub async fn create(&self, request: CreateRequest) -> Result<Opened, SmbError> {
        let connection = &self.session.connection;
        let response =
            connection.call_ok(wire::create(self.session.session_id, self.tree_id, &request)).await?;
        let response = CreateResponse::decode(&response).map_err(malformed(Command::Create))?;
        Ok(Opened { tree: self.clone(), request, response })
    }

    /// Acknowledges a lease break: from now on no more than `state` is cached.
    pub async fn acknowledge_lease_break(&self, key: LeaseKey, state: LeaseState) -> Result<(), SmbError> {
        let request = wire::acknowledge_lease_break(self.session.session_id, self.tree_id, key, state);
        self.session.connection.call_ok(request).await.map(drop)
    }

    /// Leaves the share. All its opens are closed, durable ones too.
    pub async fn disconnect(&self) -> Result<(), SmbError> {
        self.session
            .connection
            .call_ok(wire::tree_disconnect(self.session.session_id, self.tree_id))
            .await
            .map(drop)
    }
}

/// An open, and how it was come by.
#[derive(Clone, Debug)]
pub struct Opened {
    tree: Tree,
    request: CreateRequest,
    response: CreateResponse,
}

impl Opened {
    /// The server's answer to the CREATE.
    pub fn response(&self) -> &CreateResponse {
        &self.response
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &str {
        &self.request.path
    }

    /// FileId.
    pub fn file_id(&self) -> FileId {
        self.response.file_id
    }

    /// The lease's state, [`LeaseState::NONE`] when there is none.
    pub fn lease_state(&self) -> LeaseState {
        self.response.lease.map_or(LeaseState::NONE, |lease| lease.state)
    }

    /// Whether the open survives the loss of its connection. A reconnect is not answered with a durable
    /// context, yet leaves the open as durable as it was.
    pub fn is_durable(&self) -> bool {
        match self.request.durability {
            Durability::ReconnectV1 { .. } | Durability::ReconnectV2 { .. } => true,
            _ => self.response.durable_v1 || self.response.durable_v2.is_some(),
        }
    }

    /// The CREATE that asks for this open again on a later connection, with whichever context goes with how
    /// it was made. What the server does not look at (MS-SMB2 3.3.5.9.7, 3.3.5.9.12) is repeated as it was.
    pub fn reconnect_request(&self) -> CreateRequest {
        let file_id = self.file_id();
        let durability = match self.request.durability {
            Durability::None => Durability::None,
            Durability::RequestV1 | Durability::ReconnectV1 { .. } => Durability::ReconnectV1 { file_id },
            Durability::RequestV2 { create_guid, persistent, .. }
            | Durability::ReconnectV2 { create_guid, persistent, .. } => {
                Durability::ReconnectV2 { file_id, create_guid, persistent }
            }
        };
        CreateRequest { durability, ..self.request.clone() }
    }

    /// Reads up to `len` bytes.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Vec<u8>, SmbError> {
        let (session_id, tree_id) = self.ids();
        let response = self.call(wire::read(session_id, tree_id, self.file_id(), offset, len)).await?;
        wire::read_data(&response).map(<[u8]>::to_vec).map_err(malformed(Command::Read))
    }

    /// Writes and returns how many bytes were written.
    pub async fn write(&self, offset: u64, data: &[u8]) -> Result<u32, SmbError> {
        let (session_id, tree_id) = self.ids();
        let response = self.call(wire::write(session_id, tree_id, self.file_id(), offset, data)).await?;
        wire::write_count(&response).map_err(malformed(Command::Write))
    }

    /// Locks or unlocks byte ranges, all or none.
    pub async fn lock(&self, elements: &[LockElement]) -> Result<(), SmbError> {
        self.lock_with_sequence(elements, LockSequence::NONE).await
    }

    /// The same, with a number by which the server recognises the request if it is sent again.
    pub async fn lock_with_sequence(
        &self,
        elements: &[LockElement],
        sequence: LockSequence,
    ) -> Result<(), SmbError> {
        let (session_id, tree_id) = self.ids();
        self.call(wire::lock(session_id, tree_id, self.file_id(), elements, sequence)).await.map(drop)
    }

    /// Renames the file to a path below the share.
    pub async fn rename(&self, new_path: &str, replace: bool) -> Result<(), SmbError> {
        let (session_id, tree_id) = self.ids();
        self.call(wire::rename(session_id, tree_id, self.file_id(), new_path, replace)).await.map(drop)
    }

    /// Says whether the file is to be deleted when its last open is closed.
    pub async fn set_delete_pending(&self, delete_pending: bool) -> Result<(), SmbError> {
        let (session_id, tree_id) = self.ids();
        self.call(wire::set_disposition(session_id, tree_id, self.file_id(), delete_pending)).await.map(drop)
    }

    /// Cuts the file off, or extends it with zeros.
    pub async fn set_end_of_file(&self, len: u64) -> Result<(), SmbError> {
        let (session_id, tree_id) = self.ids();
        self.call(wire::set_end_of_file(session_id, tree_id, self.file_id(), len)).await.map(drop)
    }

    /// Says when the file was last written, in seconds since 1970.
    pub async fn set_last_write_time(&self, seconds: u32) -> Result<(), SmbError> {
        let (session_id, tree_id) = self.ids();
        self.call(wire::set_last_write_time(session_id, tree_id, self.file_id(), seconds)).await.map(drop)
    }

    /// Acknowledges an oplock break: from now on the open has no more than `level`.
    pub async fn acknowledge_oplock_break(&self, level: OplockLevel) -> Result<(), SmbError> {
        let (session_id, tree_id) = self.ids();
        self.call(wire::acknowledge_oplock_break(session_id, tree_id, self.file_id(), level)).await.map(drop)
    }

    /// Closes the open.
    pub async fn close(&self) -> Result<(), SmbError> {
        let (session_id, tree_id) = self.ids();
        self.call(wire::close(session_id, tree_id, self.file_id())).await.map(drop)
    }

    fn ids(&self) -> (u64, u32) {
        (self.tree.session.session_id, self.tree.tree_id)
    }

    async fn call(&self, request: wire::Request) -> Result<wire::Response, SmbError> {
        self.tree.session.connection.call_ok(request).await
    }
}
