//! `Create` and its parts.

use statedb::{
    AccessMask, Client, ClientGuid, Create, CreateContexts, CreateGuid, CreateOptions, DurableFileId,
    DurableReconnectV2, DurableRequestV2, Millis, SessionId, Share, ShareAccess, ShareName, Sid,
};

use super::enumerations::{optional, specified};
use super::{required, sixteen};
use crate::WireError;
use crate::pb::smb::v1 as pb;

impl From<&Create> for pb::Create {
    fn from(create: &Create) -> Self {
        Self {
            durable_file_id: create.durable_file_id.map(|id| id.0),
            client: Some((&create.client).into()),
            share: Some((&create.share).into()),
            path: create.path.as_ref().to_owned(),
            file: Some(create.file.into()),
            is_directory: create.is_directory,
            parent_directory: create.parent_directory.map(Into::into),
            granted_access: create.granted_access.0,
            share_access: create.share_access.0,
            create_options: create.create_options.0,
            create_action: pb::CreateAction::from(create.create_action).into(),
            requested_oplock: Some(create.requested.into()),
            contexts: Some(create.contexts.into()),
            app_instance: create.app_instance.map(Into::into),
            is_replay: create.is_replay,
            allocation_size: create.allocation_size,
            image: create.image.to_vec(),
        }
    }
}

impl TryFrom<pb::Create> for Create {
    type Error = WireError;

    fn try_from(create: pb::Create) -> Result<Self, WireError> {
        const MESSAGE: &str = "Create";
        Ok(Self {
            durable_file_id: create.durable_file_id.map(DurableFileId),
            client: required(MESSAGE, "client", create.client)?.try_into()?,
            share: required(MESSAGE, "share", create.share)?.into(),
            path: create.path.into(),
            file: required(MESSAGE, "file", create.file)?.into(),
            is_directory: create.is_directory,
            parent_directory: create.parent_directory.map(Into::into),
            granted_access: AccessMask(create.granted_access),
            share_access: ShareAccess(create.share_access),
            create_options: CreateOptions(create.create_options),
            create_action: optional(MESSAGE, "create_action", create.create_action)?.unwrap_or_default(),
            requested: required(MESSAGE, "requested_oplock", create.requested_oplock)?.try_into()?,
            contexts: create.contexts.map(TryInto::try_into).transpose()?.unwrap_or_default(),
            app_instance: create.app_instance.map(TryInto::try_into).transpose()?,
            is_replay: create.is_replay,
            allocation_size: create.allocation_size,
            image: create.image.into(),
        })
    }
}

impl From<&Client> for pb::Client {
    fn from(client: &Client) -> Self {
        Self {
            client_guid: client.client_guid.0.to_vec(),
            user: client.user.to_string(),
            session_id: client.session.0,
            dialect: pb::Dialect::from(client.dialect).into(),
            persistent_handles: client.persistent_handles,
            may_read: client.may_read,
        }
    }
}

impl TryFrom<pb::Client> for Client {
    type Error = WireError;

    fn try_from(client: pb::Client) -> Result<Self, WireError> {
        const MESSAGE: &str = "Client";
        Ok(Self {
            client_guid: ClientGuid(sixteen(MESSAGE, "client_guid", &client.client_guid)?),
            user: Sid(client.user.into()),
            session: SessionId(client.session_id),
            dialect: specified(MESSAGE, "dialect", client.dialect)?,
            persistent_handles: client.persistent_handles,
            may_read: client.may_read,
        })
    }
}

impl From<&Share> for pb::Share {
    fn from(share: &Share) -> Self {
        Self {
            name: share.name.as_str().to_owned(),
            continuously_available: share.continuously_available,
            scale_out: share.scale_out,
            ca_timeout_ms: share.ca_timeout.map(|timeout| timeout.0),
        }
    }
}

impl From<pb::Share> for Share {
    fn from(share: pb::Share) -> Self {
        Self {
            name: ShareName::new(&share.name),
            continuously_available: share.continuously_available,
            scale_out: share.scale_out,
            ca_timeout: share.ca_timeout_ms.map(Millis),
        }
    }
}

impl From<CreateContexts> for pb::CreateContexts {
    fn from(contexts: CreateContexts) -> Self {
        Self {
            durable_request: contexts.durable_request,
            durable_reconnect: contexts.durable_reconnect.map(|id| id.0),
            durable_request_v2: contexts.durable_request_v2.map(|request| pb::DurableRequestV2 {
                timeout_ms: request.timeout.0,
                persistent: request.persistent,
                create_guid: request.create_guid.0.to_vec(),
            }),
            durable_reconnect_v2: contexts.durable_reconnect_v2.map(|reconnect| pb::DurableReconnectV2 {
                durable_file_id: reconnect.durable_file_id.0,
                create_guid: reconnect.create_guid.0.to_vec(),
                persistent: reconnect.persistent,
            }),
        }
    }
}

impl TryFrom<pb::CreateContexts> for CreateContexts {
    type Error = WireError;

    fn try_from(contexts: pb::CreateContexts) -> Result<Self, WireError> {
        Ok(Self {
            durable_request: contexts.durable_request,
            durable_reconnect: contexts.durable_reconnect.map(DurableFileId),
            durable_request_v2: contexts.durable_request_v2.map(TryInto::try_into).transpose()?,
            durable_reconnect_v2: contexts.durable_reconnect_v2.map(TryInto::try_into).transpose()?,
        })
    }
}

impl TryFrom<pb::DurableRequestV2> for DurableRequestV2 {
    type Error = WireError;

    fn try_from(request: pb::DurableRequestV2) -> Result<Self, WireError> {
        Ok(Self {
            timeout: Millis(request.timeout_ms),
            persistent: request.persistent,
            create_guid: CreateGuid(sixteen("DurableRequestV2", "create_guid", &request.create_guid)?),
        })
    }
}

impl TryFrom<pb::DurableReconnectV2> for DurableReconnectV2 {
    type Error = WireError;

    fn try_from(reconnect: pb::DurableReconnectV2) -> Result<Self, WireError> {
        Ok(Self {
            durable_file_id: DurableFileId(reconnect.durable_file_id),
            create_guid: CreateGuid(sixteen("DurableReconnectV2", "create_guid", &reconnect.create_guid)?),
            persistent: reconnect.persistent,
        })
    }
}
