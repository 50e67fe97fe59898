//! What is known of Samba's records, held against records of a real smbd (`testdata/`).

mod capture;
mod ghosts;
mod in_the_way;
mod materialise;
mod records;
mod situation;
