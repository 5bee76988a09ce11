(** One Sinkhorn step: columns sum to 1 after it, and only doubly stochastic matrices are left as they are. *)

Require Import Reals Lra Lia List.
From Karat Require Import Carrier Sums INV11_mhc_doubly_stochastic.
Local Open Scope R_scope.

Definition positive (n : nat) (M : nat -> nat -> R) : Prop := forall i j, (i < n)%nat -> (j < n)%nat -> 0 < M i j.

Lemma total_positive (n : nat) (f : nat -> R) : (0 < n)%nat -> (forall i, (i < n)%nat -> 0 < f i) -> 0 < total n f.
Proof.
  intros Hn H. destruct n as [|n]; [lia|]. rewrite total_S.
  assert (0 <= total n f) by (apply total_nonneg; intros; apply Rlt_le, H; lia). assert (0 < f n) by (apply H; lia). lra.
Qed.

Lemma divided_rows_positive (n : nat) (M : nat -> nat -> R) (i j : nat) :
  positive n M -> (i < n)%nat -> (j < n)%nat -> 0 < divided_rows (K := on_R) n M i j.
Proof. intros P Hi Hj. apply Rdiv_lt_0_compat; [auto|]. apply total_positive; [lia | auto]. Qed.

(** After a step on a matrix with entries > 0 the entries are > 0 and each column sums to 1: any size. *)
Theorem sinkhorn_columns : forall (n : nat) (M : nat -> nat -> R),
  positive n M ->
  positive n (sinkhorn_step (K := on_R) n M) /\
  forall j, (j < n)%nat -> total n (fun i => sinkhorn_step (K := on_R) n M i j) = 1.
Proof.
  intros n M P.
  assert (C : forall j, (j < n)%nat -> 0 < total n (fun t => divided_rows (K := on_R) n M t j)).
  { intros j Hj. apply total_positive; [lia|]. intros i Hi. now apply divided_rows_positive. }
  split.
  - intros i j Hi Hj. apply Rdiv_lt_0_compat; [now apply divided_rows_positive | now apply C].
  - intros j Hj. specialize (C j Hj). unfold sinkhorn_step. simpl div. unfold Rdiv. rewrite total_scal_r.
    apply Rinv_r. apply Rgt_not_eq. exact C.
Qed.

Lemma sinkhorn_columns_satisfiable : exists (n : nat) (M : nat -> nat -> R), positive n M.
Proof. exists 2%nat, (fun i j => 1 + INR (i + j)). intros i j _ _. pose proof (pos_INR (i + j)). lra. Qed.

(** The rows need not sum to 1 after it: those of 1 2 / 3 5 do not. *)
Theorem sinkhorn_rows_may_miss : exists M : nat -> nat -> R,
  positive 2 M /\ forall i, (i < 2)%nat -> total 2 (sinkhorn_step (K := on_R) 2 M i) <> 1.
Proof.
  exists (fun i j => match i, j with O, O => 1 | O, _ => 2 | _, O => 3 | _, _ => 5 end). split.
  - intros [|i] [|j] _ _; lra.
  - intros [|[|i]] Hi; [| |lia]; unfold sinkhorn_step, divided_rows; simpl; intro H; field_simplify in H; lra.
Qed.

(** A matrix with entries > 0 is left as it is exactly where it is doubly stochastic. *)
Theorem sinkhorn_fixed_points : forall (n : nat) (M : nat -> nat -> R),
  positive n M ->
  ((forall i j, (i < n)%nat -> (j < n)%nat -> sinkhorn_step (K := on_R) n M i j = M i j) <-> doubly_stochastic n M).
Proof.
  intros n M P. destruct (sinkhorn_columns n M P) as [_ Columns].
  assert (Row : forall i, (i < n)%nat -> 0 < total n (M i)) by (intros; apply total_positive; [lia | auto]).
  split.
  - intro Fixed. assert (Ones : forall j, (j < n)%nat -> total n (fun i => M i j) = 1).
    { intros j Hj. rewrite <- (Columns j Hj). apply total_ext. intros i Hi. symmetry. now apply Fixed. }
    split; [intros; apply Rlt_le; auto|]. split; [|exact Ones].
    assert (Same : forall i k, (i < n)%nat -> (k < n)%nat -> total n (M i) = total n (M k)).
    { assert (One : forall i, (i < n)%nat -> total n (M i) * total n (fun t => divided_rows (K := on_R) n M t 0%nat) = 1).
      { intros i Hi. assert (E : sinkhorn_step (K := on_R) n M i 0 = M i 0%nat) by (apply Fixed; lia).
        assert (H : 0 < M i 0%nat) by (apply P; lia). specialize (Row i Hi).
        assert (C : 0 < total n (fun t => divided_rows (K := on_R) n M t 0%nat)).
        { apply total_positive; [lia|]. intros t Ht. apply divided_rows_positive; auto; lia. }
        set (r := total n (M i)) in *. set (c := total n (fun t => divided_rows (K := on_R) n M t 0%nat)) in *.
        change (M i 0%nat / r / c = M i 0%nat) in E.
        apply Rmult_eq_reg_l with (M i 0%nat); [|lra].
        transitivity (M i 0%nat / r / c * (r * c)); [rewrite E; reflexivity | field; lra]. }
      intros i k Hi Hk. pose proof (One i Hi) as Ei. pose proof (One k Hk) as Ek.
      set (c := total n (fun t => divided_rows (K := on_R) n M t 0%nat)) in *.
      assert (c <> 0) by (intro Z; rewrite Z in Ei; lra).
      apply Rmult_eq_reg_r with c; [rewrite Ei, Ek; reflexivity | assumption]. }
    intros i Hi.
    assert (Sum : INR n * total n (M i) = INR n).
    { rewrite <- total_const, <- (Rmult_1_r (INR n)), <- (total_const n 1).
      rewrite (total_ext n (fun _ => total n (M i)) (fun k => total n (fun j => M k j))) by (intros; now apply Same).
      rewrite total_swap. now apply total_ext. }
    assert (0 < INR n) by (apply lt_0_INR; lia).
    apply Rmult_eq_reg_l with (INR n); lra.
  - intros (_ & Rows & Ones) i j Hi Hj.
    assert (Same : forall t, (t < n)%nat -> divided_rows (K := on_R) n M t j = M t j).
    { intros t Ht. unfold divided_rows. rewrite (Rows t Ht). change (M t j / 1 = M t j). field. }
    unfold sinkhorn_step. rewrite (Same i Hi), (total_ext n _ (fun t => M t j)), Ones by assumption.
    change (M i j / 1 = M i j). field.
Qed.

Lemma sinkhorn_fixed_points_satisfiable : exists (n : nat) (M : nat -> nat -> R), positive n M.
Proof. exact sinkhorn_columns_satisfiable. Qed.
