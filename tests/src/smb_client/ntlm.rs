//! Authentication: NTLMv2 by the `sspi` crate.
//!
//! Its tokens go into SESSION_SETUP bare, without a SPNEGO wrapping; Windows and Samba both take them so.

use sspi::{
    AuthIdentity, AuthIdentityBuffers, BufferType, ClientRequestFlags, CredentialUse, DataRepresentation,
    Ntlm, SecurityBuffer, Sspi, SspiImpl, Username,
};

use super::{client::Credentials, error::SmbError};

/// One authentication: a NEGOTIATE token, then an AUTHENTICATE token for the server's CHALLENGE.
pub(super) struct NtlmExchange {
    ntlm: Ntlm,
    credentials: Option<AuthIdentityBuffers>,
}

impl NtlmExchange {
    pub(super) fn new(credentials: &Credentials) -> Result<Self, SmbError> {
        let username = Username::new(&credentials.user, None)
            .map_err(|err| failed(sspi::Error::new(sspi::ErrorKind::InvalidParameter, err)))?;
        let identity = AuthIdentity { username, password: credentials.password.clone().into() };
        let mut ntlm = Ntlm::new();
        let acquired = ntlm
            .acquire_credentials_handle()
            .with_credential_use(CredentialUse::Outbound)
            .with_auth_data(&identity)
            .execute(&mut ntlm)
            .map_err(failed)?;
        Ok(Self { ntlm, credentials: acquired.credentials_handle })
    }

    /// The next token, given the server's last one (empty at the beginning).
    pub(super) fn step(&mut self, challenge: &[u8]) -> Result<Vec<u8>, SmbError> {
        let mut input = [SecurityBuffer::new(challenge.to_vec(), BufferType::Token)];
        let mut output = vec![SecurityBuffer::new(Vec::new(), BufferType::Token)];
        let mut builder = self
            .ntlm
            .initialize_security_context()
            .with_credentials_handle(&mut self.credentials)
            .with_context_requirements(ClientRequestFlags::ALLOCATE_MEMORY)
            .with_target_data_representation(DataRepresentation::Native)
            .with_input(&mut input)
            .with_output(&mut output);
        self.ntlm
            .initialize_security_context_impl(&mut builder)
            .and_then(|mut step| step.resolve_to_result())
            .map_err(failed)?;
        Ok(output.swap_remove(0).buffer)
    }
}

fn failed(err: sspi::Error) -> SmbError {
    SmbError::Authentication(Box::new(err))
}
